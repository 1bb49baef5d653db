package policy

import (
	"maps"
	"net/http"
	"slices"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// depends finds what the requests to the target are made of, beside the message.
func (t *Target) depends(auth *policyv1.BackendAuth) {
	if t.request != nil {
		for _, headers := range [][]header{t.request.add, t.request.set} {
			for _, h := range headers {
				t.perCaller = t.perCaller || h.value.reads(varCaller)
				t.perRequest = t.perRequest || h.value.reads(^(varJWT | varAPIKey | varBasicAuth | varScopes | varTenant))
			}
		}
	}
	t.perCaller = t.perCaller || t.perRequest || auth.GetPassthrough() != nil || auth.GetTokenExchange() != nil
	if t.auth == nil || t.auth.aws == nil || t.auth.aws.role == nil {
		return
	}
	role := t.auth.aws.role
	t.perCaller = t.perCaller || role.name.reads(varCaller) || slices.ContainsFunc(role.tags, func(tag awsTag) bool { return tag.value.reads(varCaller) })
}

// PerCaller reports whether the target may see from a request who calls, through requestHeaderModifier or backendAuth: then
// what it answers is for that caller alone.
func (t *Target) PerCaller() bool { return t != nil && t.perCaller }

// PerRequest reports whether requestHeaderModifier makes of two requests of one caller different ones: then the answer to
// one is none to the other.
func (t *Target) PerRequest() bool { return t != nil && t.perRequest }

// Varying is what requestHeaderModifier adds to a request by expressions, as a key: requests to the target that are the same
// otherwise are the same if it is. An expression that fails is part of it, though no such request is sent.
func (t *Target) Varying(c *Call) string {
	if t == nil || t.request == nil {
		return ""
	}
	h := http.Header{}
	if err := t.request.apply(h, c); err != nil {
		return "\x00" + err.Error()
	}
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(h)) {
		b.WriteString(name + "\x00" + strings.Join(h[name], "\x01") + "\x00")
	}
	return b.String()
}

// ReadsTime reports whether a rule reads request.startTime: what is listed now may be hidden in a moment.
func (t *Target) ReadsTime() bool { return t != nil && t.readsTime }
