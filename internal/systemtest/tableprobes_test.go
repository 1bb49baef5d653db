package systemtest

import (
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// A probe sets one kind of policy with an effect that a client or a target can see.
type probe struct {
	// policy is the kind's value in YAML, for targets of a transport.
	policy func(transport string) string
	// inEffect looks whether the policy is in effect, by real requests; what it saw goes into the failure's message.
	inEffect func(t *testing.T, c caller, p *peer) (bool, answer)
	// secure makes the targets speak TLS that nobody knows.
	secure bool
	// agents makes every target that can be one an agent, whatever its transport says.
	agents bool
	// target is the target's transport in YAML where it is a special one; name is the target's.
	target func(t *testing.T, p *peer, name string) string
	// inherent are transports on which what is looked for is there without the policy: it cannot be told apart there.
	inherent []string
}

// agent tells whether the probe makes a column's target an agent, which MCP's eras are nothing to.
func (p probe) agent(c column) bool { return p.agents && c.transport() == "mcp" }

func always(yaml string) func(string) string { return func(string) string { return yaml } }

// refusesWith is a probe for what refuses requests, with a status, that pass without it.
func refusesWith(status int, yaml string, knock func(*testing.T, caller) answer) probe {
	return probe{policy: always(yaml), inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
		got := knock(t, c)
		return got.status == status, got
	}}
}

// anonymously says something without credentials, and with them what must go through if the former did not.
func anonymously(header, value string) func(*testing.T, caller) answer {
	return func(t *testing.T, c caller) answer {
		got := c.say(t, "hi")
		if got.status == http.StatusUnauthorized {
			if with := c.with(header, value).say(t, "hi"); !with.says("hi") {
				return answer{0, with.header, "with credentials too: " + with.body}
			}
		}
		return got
	}
}

// probes has one for each kind of the registry.
func probes(t *testing.T) map[string]probe {
	key := newSigner(t, "k1")
	token := "Bearer " + key.sign(t, claims("ada"))
	issuer := fmt.Sprintf("issuer: https://issuer.example.com, audiences: [sluice], jwks: '%s'", key.jwks(t))
	starts := t.TempDir()
	return map[string]probe{
		"mcpAuthorization": {policy: always(`{rules: [{deny: '"x-probe" in request.headers'}]}`), inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
			got := c.with("X-Probe", "1").say(t, "hi")
			if without := c.say(t, "hi"); !without.says("hi") {
				return false, without
			}
			return !got.says("hi"), got
		}},
		"backendAuth": {
			policy: func(transport string) string {
				if transport == "stdio" {
					return `{key: probe-key, env: PROBE_KEY}`
				}
				return `{key: {value: probe-key, location: {header: {name: X-Probe-Key}}}}`
			},
			inEffect: func(t *testing.T, c caller, p *peer) (bool, answer) {
				if p.kind == "stdio" {
					got := c.request(t, `"env"`, "tools/call", "env", `"name":"env","arguments":{"name":"PROBE_KEY"}`)
					return got.says("probe-key"), got
				}
				return sentHeader(t, c, p, "X-Probe-Key", "probe-key")
			},
		},
		"backendTLS": {secure: true, inherent: []string{"stdio"}, policy: always(`{insecure: true}`), inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
			got := c.say(t, "hi")
			return got.says("hi"), got
		}},
		"requestHeaderModifier": {policy: always(`{set: {X-Probe: {expression: '"tenant " + tenant'}}}`), inEffect: func(t *testing.T, c caller, p *peer) (bool, answer) {
			return sentHeader(t, c, p, "X-Probe", "tenant default")
		}},
		"responseHeaderModifier": {policy: always(`{set: {X-Probe: {expression: '"tenant " + tenant'}}}`), inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
			got := c.say(t, "hi")
			return got.says("hi") && got.header.Get("X-Probe") == "tenant default", got
		}},
		"ai": {policy: always(`{promptGuard: {request: [{regex: {action: reject, rules: [{pattern: "pass.?word"}]}}]}}`), inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
			if got := c.say(t, "hi"); !got.says("hi") {
				return false, got
			}
			got := c.say(t, "the password")
			return !got.says("the password"), got
		}},
		"a2a": {policy: always(`{}`), agents: true, inherent: []string{"a2a"}, inEffect: func(t *testing.T, c caller, p *peer) (bool, answer) {
			card := c
			card.url += "/.well-known/agent-card.json"
			got := card.do(t, http.MethodGet, "", "")
			if got.status != http.StatusOK {
				return false, got
			}
			c.era = ""
			said := c.say(t, "hi")
			return said.says("hi") && strings.Contains(got.body, c.host) && !strings.Contains(got.body, p.host), got
		}},
		"cors": {policy: always(`{allowOrigins: ["https://probe.example.com"]}`), inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
			got := c.with("Origin", "https://probe.example.com").say(t, "hi")
			return got.says("hi") && got.header.Get("Access-Control-Allow-Origin") == "https://probe.example.com", got
		}},
		"jwtAuth":           refusesWith(401, `{mode: strict, `+issuer+`}`, anonymously("Authorization", token)),
		"apiKey":            refusesWith(401, `{mode: strict, keys: [{key: probe-key}]}`, anonymously("Authorization", "Bearer probe-key")),
		"mcpAuthentication": refusesWith(401, `{`+issuer+`}`, anonymously("Authorization", token)),
		// A test vector of crypt_blowfish: the hash of U*U.
		"basicAuth": refusesWith(401, `{mode: strict, htpasswd: "user:$$2a$$05$$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"}`, anonymously("Authorization", "Basic dXNlcjpVKlU=")),
		"localRateLimit": refusesWith(429, `[{maxTokens: 2, tokensPerFill: 1, fillInterval: 1h}]`, func(t *testing.T, c caller) (got answer) {
			for range 4 {
				if got = c.say(t, "hi"); got.status == 429 {
					break
				}
			}
			return got
		}),
		"timeout": refusesWith(504, `{requestTimeout: 100ms}`, func(t *testing.T, c caller) answer { return c.slow(t) }),
		"retry": {policy: always(`{attempts: 2, backoff: 1ms}`),
			target: func(t *testing.T, p *peer, name string) string {
				if p.kind != "stdio" {
					return p.yaml()
				}
				// The first start of each child fails, before it has read anything. Each configuration has children of its own.
				child := mcptest.Stdio("serve")
				script := fmt.Sprintf("mkdir %s 2>/dev/null && exit 1; exec %s", filepath.Join(starts, fmt.Sprint(name, "-", ids.Add(1))), child.Path)
				return fmt.Sprintf("stdio: {cmd: sh, args: [-c, %q], env: {SLUICE_MCPTEST_STDIO: serve}}", script)
			},
			inEffect: func(t *testing.T, c caller, _ *peer) (bool, answer) {
				got := c.read(t)
				return got.status == http.StatusOK && strings.Contains(got.body, `"result"`), got
			}},
	}
}

// sentHeader says something and looks whether the target was sent the header.
func sentHeader(t *testing.T, c caller, p *peer, name, value string) (bool, answer) {
	before := len(p.requests())
	got := c.say(t, "hi")
	if !got.says("hi") {
		return false, got
	}
	return slices.ContainsFunc(p.requests()[before:], func(r mcptest.Request) bool { return r.Header.Get(name) == value }), got
}
