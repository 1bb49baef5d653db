package policy

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// certified is a request over TLS whose caller showed c; the listener verified it or not.
func certified(c *x509.Certificate, verified bool) *Call {
	call := toolCall("echo", "{}")
	call.HTTP = httptest.NewRequest("POST", "https://api.example.com/mcp", nil)
	call.HTTP.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}}
	if verified {
		call.HTTP.TLS.VerifiedChains = [][]*x509.Certificate{{c, {}}}
	}
	return call
}

func TestClientCertificate(t *testing.T) {
	uri := func(s string) *url.URL {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	full := &x509.Certificate{
		Raw: []byte("der"), SerialNumber: big.NewInt(255), Subject: pkix.Name{CommonName: "ci", Organization: []string{"Build"}}, Issuer: pkix.Name{CommonName: "corp-ca"},
		DNSNames: []string{"ci.example.com"}, IPAddresses: []net.IP{net.IPv4(10, 0, 0, 1)}, URIs: []*url.URL{uri("spiffe://example.com/ci")}, EmailAddresses: []string{"ci@example.com"},
	}
	twoURIs := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{uri("spiffe://a/b"), uri("spiffe://a/c")}}
	https := &x509.Certificate{SerialNumber: big.NewInt(1), URIs: []*url.URL{uri("https://example.com/ci")}}
	for _, tt := range []struct {
		rule string
		call *Call
		want bool
	}{
		{`source.spiffeId == "spiffe://example.com/ci"`, certified(full, true), true},
		{`source.subjectCn == "ci" && source.subject == "CN=ci,O=Build" && source.issuer == "CN=corp-ca"`, certified(full, true), true},
		{`source.subjectAltNames == ["ci.example.com", "spiffe://example.com/ci", "10.0.0.1", "ci@example.com"]`, certified(full, true), true},
		{`source.certificate.serialNumber == "ff" && size(source.certificate.sha256) == 64`, certified(full, true), true},
		{`has(source.certificate) && has(source.spiffeId) && has(source.subjectCn) && has(source.subjectAltNames)`, certified(full, true), true},
		{`has(source.spiffeId)`, certified(twoURIs, true), false}, // an SVID has one
		{`has(source.spiffeId)`, certified(https, true), false},
		{`has(source.subjectCn)`, certified(https, true), false},
		{`source.spiffeId == "spiffe://a/b"`, certified(twoURIs, true), false},
		{`has(source.certificate)`, certified(full, false), false}, // shown, not verified
		{`source.spiffeId == "spiffe://example.com/ci"`, certified(full, false), false},
		{`has(source.certificate)`, toolCall("echo", "{}"), false},
		{`!has(source.certificate)`, toolCall("echo", "{}"), true},
		{`!has(source.certificate)`, certified(full, false), false}, // it was another proxy's listener, which is not believed in either
	} {
		if got := mustTarget(t, authz(allow(tt.rule))).Admit(tt.call).Allowed; got != tt.want {
			t.Errorf("%s: %v, want %v", tt.rule, got, tt.want)
		}
		// Who is not known is no exception to a rule that refuses him.
		if mustTarget(t, authz(deny(tt.rule))).Admit(tt.call).Allowed && tt.want {
			t.Errorf("deny %s admits", tt.rule)
		}
	}
	if mustTarget(t, authz(deny(`has(source.certificate) && source.certificate.sha256 == "00"`))).Admit(certified(full, false)).Allowed {
		t.Error("a deny of a certificate admits a caller whose certificate is not known")
	}
	if !mustTarget(t, authz(allow(`has(source.certificate)`), allow(`true`))).Admit(certified(full, false)).Allowed {
		t.Error("a rule that fails keeps another one from admitting")
	}
	if mustTarget(t, authz(deny(`source.subjectCn == "mallory"`))).Admit(certified(https, true)).Allowed {
		t.Error("a deny over a name that the certificate has not admits")
	}
	if _, err := CompileTarget(authz(allow(`source.certificate == source.certificate`)), HTTP, Resolver{}); err == nil {
		t.Error("a rule over a certificate as a value compiles")
	}
}

func TestTime(t *testing.T) {
	at := func(when string) *Call {
		c := toolCall("echo", "{}")
		c.HTTP = httptest.NewRequest("POST", "http://a/mcp", nil)
		start, err := time.Parse(time.RFC3339, when)
		if err != nil {
			t.Fatal(err)
		}
		c.Start = start
		return c
	}
	const office = `request.startTime.getDayOfWeek("Europe/Berlin") in [1, 2, 3, 4, 5] && request.startTime.getHours("Europe/Berlin") >= 8 && request.startTime.getHours("Europe/Berlin") < 18`
	for _, tt := range []struct {
		rule, when string
		want       bool
	}{
		{`request.startTime < timestamp("2026-12-31T00:00:00Z")`, "2026-12-30T23:59:59Z", true},
		{`request.startTime < timestamp("2026-12-31T00:00:00Z")`, "2026-12-31T00:00:00Z", false},
		{`request.startTime - timestamp("2026-01-01T00:00:00Z") < duration("24h")`, "2026-01-01T23:00:00Z", true},
		{`request.startTime + duration("1h") > timestamp("2026-01-01T00:00:00Z")`, "2025-12-31T23:30:00Z", true},
		{office, "2026-11-26T07:30:00Z", true},  // Thursday, 8:30 in winter
		{office, "2026-06-25T06:30:00Z", true},  // Thursday, 8:30 in summer
		{office, "2026-11-26T06:30:00Z", false}, // 7:30
		{office, "2026-11-28T10:00:00Z", false}, // Saturday
		{office, "2026-11-29T23:30:00Z", false}, // Sunday in UTC, Monday 0:30 in Berlin
		{`request.startTime.getDayOfWeek("Europe/Berlin") == 1`, "2026-11-29T23:30:00Z", true},
		{`request.startTime.getHours("+05:30") == 5`, "2026-11-29T00:00:00Z", true},
		{`request.startTime.getHours("America/New_York") == 19`, "2026-11-29T00:00:00+00:00", true},
	} {
		target := mustTarget(t, authz(allow(tt.rule)))
		c := at(tt.when)
		if got := target.Admit(c).Allowed; got != tt.want {
			t.Errorf("%s at %s: %v, want %v", tt.rule, tt.when, got, tt.want)
		}
		if target.AdmitList(c).Allowed != tt.want {
			t.Errorf("%s at %s: listed and callable differ", tt.rule, tt.when)
		}
		if !target.ReadsTime() || !target.ReadsPrincipal() {
			t.Errorf("%s reads no time", tt.rule)
		}
	}
	c := at("2026-01-01T00:00:00Z")
	c.Start = time.Time{}
	if !mustTarget(t, authz(allow(`request.startTime > timestamp("2026-01-01T00:00:00Z")`))).Admit(c).Allowed {
		t.Error("a call without a time does not begin now")
	}
	for _, rule := range []string{`request.startTime.getHours("Europe/Berln") == 1`, `timestamp("yesterday") < request.startTime`} {
		if _, err := CompileTarget(authz(allow(rule)), HTTP, Resolver{}); err == nil {
			t.Errorf("%s compiles", rule)
		}
	}
	_, err := CompileTarget(authz(allow(`request.startTime.getHours("Europe/Berln") == 1`)), HTTP, Resolver{})
	if err == nil || !strings.Contains(err.Error(), "no time zone") {
		t.Errorf("%v", err)
	}
}

// Annotations are hints that a server need not give: what is absent is an error, which admits nothing.
func TestAnnotationHints(t *testing.T) {
	for _, hint := range []string{"readOnlyHint", "destructiveHint", "idempotentHint", "openWorldHint"} {
		for annotations, want := range map[string]string{
			`{"` + hint + `":true}`:  "allow deny! require",
			`{"` + hint + `":false}`: "deny",
			`{"title":"T"}`:          "",
			`{}`:                     "",
			`null`:                   "",
			``:                       "",
			`[]`:                     "",
			`{"` + hint + `":"yes"}`: "",
			`{"` + hint + `":true,"` + hint + `":false}`: "",
		} {
			c := toolCall("echo", "{}")
			if annotations != "" {
				c.Annotations = []byte(annotations)
			}
			expr := "mcp.tool.annotations." + hint
			got := ""
			if mustTarget(t, authz(allow(expr))).Admit(c).Allowed {
				got += "allow "
			}
			if !mustTarget(t, authz(deny(expr))).Admit(c).Allowed {
				if strings.Contains(want, "deny!") {
					got += "deny! "
				}
			} else {
				got += "deny "
			}
			if mustTarget(t, authz(require(expr))).Admit(c).Allowed {
				got += "require"
			}
			if strings.TrimSpace(got) != want {
				t.Errorf("%s with %q: %q, want %q", hint, annotations, got, want)
			}
			listed := mustTarget(t, authz(allow(expr))).AdmitList(c).Allowed
			if listed != strings.HasPrefix(want, "allow") {
				t.Errorf("%s with %q: listed %v", hint, annotations, listed)
			}
			known := `!has(mcp.tool.annotations) || !has(mcp.tool.annotations.` + hint + `)`
			absent := !strings.Contains(annotations, hint) && annotations != "[]"
			if got := mustTarget(t, authz(allow(known))).Admit(c).Allowed; got != absent {
				t.Errorf("%s with %q: %v", known, annotations, got)
			}
		}
	}
}
