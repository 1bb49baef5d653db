package policy

import policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"

// depends finds what the requests to the target are made of, beside the message.
func (t *Target) depends(auth *policyv1.BackendAuth) {
	if t.request != nil {
		for _, headers := range [][]header{t.request.add, t.request.set} {
			for _, h := range headers {
				t.perCaller = t.perCaller || h.value.reads(varCaller)
				t.perRequest = t.perRequest || h.value.reads(^(varJWT | varAPIKey | varScopes | varTenant))
			}
		}
	}
	byCaller := func(v *policyv1.Value) bool { return v.GetExpression() != "" }
	role := auth.GetAws().GetAssumeRole()
	t.perCaller = t.perCaller || t.perRequest || auth.GetPassthrough() != nil || auth.GetTokenExchange() != nil || byCaller(role.GetSessionName())
	for _, tag := range role.GetTags() {
		t.perCaller = t.perCaller || byCaller(tag.GetValue())
	}
}

// PerCaller reports whether the target may see from a request who calls, through requestHeaderModifier or backendAuth: then
// what it answers is for that caller alone.
func (t *Target) PerCaller() bool { return t != nil && t.perCaller }

// PerRequest reports whether requestHeaderModifier makes of two requests of one caller different ones: then the answer to
// one is none to the other.
func (t *Target) PerRequest() bool { return t != nil && t.perRequest }

// ReadsTime reports whether a rule reads request.startTime: what is listed now may be hidden in a moment.
func (t *Target) ReadsTime() bool { return t != nil && t.readsTime }
