package policy

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"strings"

	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// backendAuth is how the proxy authenticates to a target over HTTP.
type backendAuth struct {
	credentials []placed
	passthrough *location
}

type placed struct {
	location location
	value    Secret
	unknown  bool // compiled where the value cannot be known
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// compileBackendAuth returns what goes into requests, or into the environment of a stdio child.
func compileBackendAuth(a *policyv1.BackendAuth, t Transport, r Resolver, field string, errs *problems) (*backendAuth, []string) {
	if t == Stdio && a.GetEnv() == "" && a.GetPassthrough() == nil && !isCloudAuth(a) {
		errs.add(field+".env", "is needed on a stdio target: name the child's environment variable that receives the credential")
		return nil, nil
	}
	if t != Stdio && t != anyTransport && a.GetEnv() != "" {
		errs.add(field+".env", "names a variable of a stdio child, and this target is reached over HTTP; remove it, or set backendAuth on the target itself")
		return nil, nil
	}
	if a.GetEnv() != "" && (!envName.MatchString(a.GetEnv()) || strings.HasPrefix(a.GetEnv(), "SLUICE_")) {
		errs.add(field+".env", "%q is no environment variable of a child; use letters, digits and _, and not SLUICE_*", a.GetEnv())
		return nil, nil
	}
	switch m := a.GetMethod().(type) {
	case *policyv1.BackendAuth_Key:
		credentials := compileKey(m.Key, r, field+".key", errs)
		if a.GetEnv() == "" {
			return &backendAuth{credentials: credentials}, nil
		}
		return nil, compileChildEnv(a.GetEnv(), m.Key, credentials, field+".key", errs)
	case *policyv1.BackendAuth_Passthrough:
		if t == Stdio || a.GetEnv() != "" {
			errs.add(field+".passthrough", "sends on each caller's token, and a stdio child has no place to receive it; use `key` with `env`")
			return nil, nil
		}
		l := compileLocation(m.Passthrough.GetLocation(), field+".passthrough.location", errs)
		return &backendAuth{passthrough: &l}, nil
	case nil:
		errs.add(field, "says no method; write one of `key` and `passthrough`")
	}
	return nil, nil // aws, gcp and azure: see Unenforced
}

func compileKey(k *policyv1.KeyAuth, r Resolver, field string, errs *problems) []placed {
	if len(k.GetCredentials()) == 0 {
		errs.add(field, "holds no credential")
	}
	var out []placed
	taken := map[string]bool{}
	for i, c := range k.GetCredentials() {
		at := field
		if len(k.GetCredentials()) > 1 {
			at = fmt.Sprintf("%s.credentials[%d]", field, i)
		}
		p := placed{location: compileLocation(c.GetLocation(), at+".location", errs)}
		place := p.location
		place.prefix = ""
		if key := fmt.Sprint(place); taken[key] {
			errs.add(at+".location", "is the place of another credential too; only one fits there")
		} else {
			taken[key] = true
		}
		value, err := r.credential(c.GetCredential())
		switch {
		case errors.Is(err, ErrUnknown):
			p.unknown = true
		case err != nil:
			errs.add(at, "%v", err)
		case !p.location.valid(value.Reveal()):
			errs.add(at, "the value holds what its place cannot carry, such as a line break or a blank at an end")
		}
		p.value = value
		out = append(out, p)
	}
	return out
}

func compileChildEnv(name string, k *policyv1.KeyAuth, credentials []placed, field string, errs *problems) []string {
	if len(credentials) != 1 {
		errs.add(field, "holds %d credentials, and `env` names one variable; keep one credential", len(credentials))
		return nil
	}
	if k.GetCredentials()[0].GetLocation() != nil {
		errs.add(field+".location", "is a place in an HTTP request, and `env` hands the credential to a stdio child; remove one of them")
	}
	if strings.ContainsRune(credentials[0].value.Reveal(), 0) {
		errs.add(field, "the value holds a NUL byte, which no environment variable can")
	}
	if credentials[0].unknown {
		return nil
	}
	return []string{name + "=" + credentials[0].value.Reveal()}
}

func isCloudAuth(a *policyv1.BackendAuth) bool {
	return a.GetAws() != nil || a.GetGcp() != nil || a.GetAzure() != nil
}

// checkCloudAuth checks the shape of methods that are not enforced yet.
func checkCloudAuth(a *policyv1.BackendAuth, field string, errs *problems) {
	if aws := a.GetAws(); aws != nil && (aws.GetAccessKeyId() == nil) != (aws.GetSecretAccessKey() == nil) {
		errs.add(field+".aws", "needs both `accessKeyId` and `secretAccessKey`, or neither")
	}
	if gcp := a.GetGcp(); gcp != nil {
		switch gcp.GetType() {
		case "idToken", "", "accessToken":
		default:
			errs.add(field+".gcp.type", "%q is neither idToken nor accessToken", gcp.GetType())
		}
		if gcp.GetType() != "idToken" && gcp.GetAudience() != "" {
			errs.add(field+".gcp.audience", "belongs to `type: idToken`")
		}
	}
	if az := a.GetAzure(); az != nil {
		n := 0
		for _, set := range []bool{az.GetExplicitConfig() != nil, az.GetImplicit() != nil, az.GetDeveloperImplicit() != nil} {
			if set {
				n++
			}
		}
		if n > 1 {
			errs.add(field+".azure", "says more than one of `explicitConfig`, `implicit` and `developerImplicit`")
		}
	}
}

// Outbound is a request on its way to a target.
type Outbound struct {
	Method string
	URL    *url.URL // the caller's own copy; nil: it cannot change
	Header http.Header
	Body   []byte
	Call   *Call // who calls, and for what
}

// Outgoing makes a request ready: requestHeaderModifier, then backendAuth, so that no header replaces a credential. It
// changes o's Header and URL. An error names what could not be had; the request must not be sent then. Under passthrough
// a caller without a verified token sends none: the target answers as to anyone.
func (t *Target) Outgoing(ctx context.Context, o *Outbound) error {
	if t == nil {
		return nil
	}
	if err := t.request.apply(o.Header, o.Call); err != nil {
		return err
	}
	if t.auth == nil {
		return nil
	}
	for _, c := range t.auth.credentials {
		if c.unknown {
			return errors.New("backendAuth: the credential is not known here")
		}
		if !c.location.put(o.Header, o.URL, c.value.Reveal()) {
			return errors.New("backendAuth: the credential belongs into a URL that cannot change")
		}
	}
	if l, p := t.auth.passthrough, o.Call.Principal; l != nil && p != nil && !p.Token.IsZero() {
		if !l.put(o.Header, o.URL, p.Token.Reveal()) {
			return errors.New("backendAuth: the token belongs into a URL that cannot change")
		}
	}
	return nil
}

// Passthrough reports whether callers' tokens are sent on, so that the target's 401 is for them to read.
func (t *Target) Passthrough() bool { return t != nil && t.auth != nil && t.auth.passthrough != nil }
