package policytest_test

import (
	"bytes"
	"encoding/xml"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/cli/policytest"
	"github.com/sluicegate/sluice/internal/resource"
)

func load(t *testing.T, config, tests string) *policytest.Suite {
	t.Helper()
	suite, diagnostics, err := policytest.Load(resource.File{Name: "test.yaml", Data: []byte("config: c.yaml\n" + tests)},
		func([]string) ([]resource.File, error) {
			return []resource.File{{Name: "c.yaml", Data: []byte(config)}}, nil
		}, func(string) (string, bool) { return "", false })
	for _, d := range diagnostics {
		t.Error(resource.Format(d))
	}
	if err != nil || suite == nil {
		t.Fatalf("no suite: %v", err)
	}
	return suite
}

// outcomes are the tests' names with what failed in each.
func outcomes(results []policytest.Result) map[string][]string {
	out := map[string][]string{}
	for _, r := range results {
		out[r.Name] = nil
		for _, f := range r.Failures {
			out[r.Name] = append(out[r.Name], f.What+": want "+f.Want+", got "+f.Got)
		}
	}
	return out
}

const routes = `
binds:
- port: 3000
  listeners:
  - routes:
    - name: keys
      matches: [{path: {pathPrefix: /keys}}]
      policies:
        apiKey: {mode: strict, keys: [{key: {secret: a}, metadata: {id: ci, team: build}}, {key: $KEY, metadata: {id: dev}}], location: {header: {name: X-Key}}}
      backends: [{backend: tools}]
    - name: query
      matches: [{path: {exact: /query}, headers: [{name: X-Version, value: {exact: "2"}}]}]
      policies:
        apiKey: {mode: strict, keys: [{keyHash: "sha256:0000000000000000000000000000000000000000000000000000000000000000", metadata: {id: ci}}], location: {queryParameter: {name: key}}}
      backends: [{backend: tools}]
    - name: cookie
      matches: [{path: {regex: "/c[0-9]+"}}]
      policies:
        jwtAuth: {mode: strict, location: {cookie: {name: token}}, providers: [{issuer: i, jwks: {file: /jwks.json}}, {issuer: j, audiences: [a], requiredClaims: [org], jwks: {url: "https://j.example.com/jwks"}}]}
      backends: [{backend: tools}]
- port: 3001
  listeners:
  - name: secure
    hostname: "*.example.com"
    tls: {cert: /cert.pem, key: /key.pem}
    routes:
    - name: secure
      policies: {cors: {allowOrigins: ["https://app.example.com"]}}
      backends: [{backend: tools}]
backends:
- name: tools
  mcp:
    policies:
      mcpAuthorization: {rules: ['!has(apiKey.id) || apiKey.id == "ci"']}
      requestHeaderModifier: {set: {x-scheme: {expression: request.scheme}, x-id: {expression: 'has(apiKey.id) ? apiKey.id : has(jwt.sub) ? jwt.sub : "-"'}, x-from: {expression: source.address}}}
    targets:
    - {name: a, mcp: {host: "https://a.example.com/mcp"}}
`

// Who calls is shown to the route's own verifiers, wherever they look for it.
func TestPrincipalsAndRoutes(t *testing.T) {
	suite := load(t, routes, `
tests:
- {name: key in a header, route: keys, principal: {apiKey: ci}, request: {tool: x}, expect: {allowed: true, sent: {headers: {x-id: ci, x-scheme: http, x-from: 192.0.2.1, x-key: null}}}}
- {name: key by other metadata, route: keys, principal: {apiKey: {team: build}}, request: {tool: x}, expect: {allowed: true}}
- {name: another key, route: keys, principal: {apiKey: dev}, request: {tool: x}, expect: {refused: no allow rule, list: []}}
- {name: no key, route: keys, request: {tool: x}, expect: {refused: {status: 401}}}
- {name: by path, port: 3000, path: /keys/more, principal: {apiKey: ci}, request: {tool: x}, expect: {allowed: true}}
- {name: key in the query, route: query, principal: {apiKey: ci}, request: {tool: x}, expect: {sent: {headers: {x-id: ci}, url: "https://a.example.com/mcp"}}}
- {name: token in a cookie, route: cookie, path: /c1, principal: {jwt: {sub: s}}, request: {tool: x}, expect: {allowed: true, sent: {headers: {x-id: s, cookie: null}}}}
- {name: of another issuer, route: cookie, path: /c1, principal: {jwt: {iss: j, sub: s, org: o}}, request: {tool: x}, expect: {allowed: true}}
- {name: which wants a claim, route: cookie, path: /c1, principal: {jwt: {iss: j, sub: s}}, request: {tool: x}, expect: {refused: required claim}}
- {name: of nobody known, route: cookie, path: /c1, principal: {jwt: {iss: k}}, request: {tool: x}, expect: {refused: issuer is not trusted}}
- {name: expired, route: cookie, path: /c1, principal: {jwt: {exp: 1}}, request: {tool: x}, expect: {refused: has expired}}
- {name: over TLS, route: secure, source: "2001:db8::1", request: {tool: x}, expect: {sent: {headers: {x-scheme: https, x-id: "-", x-from: "2001:db8::1"}}}}
- {name: from a page, host: x.example.com, port: 3001, headers: {origin: "https://evil.example.com"}, request: {tool: x}, expect: {refused: {status: 403, because: allowOrigins}}}
- {name: from the page, route: secure, headers: {origin: "https://app.example.com"}, request: {tool: x}, expect: {received: {headers: {access-control-allow-origin: "https://app.example.com"}}}}
`)
	for name, failures := range outcomes(suite.Run(t.Context(), nil)) {
		if failures != nil {
			t.Errorf("%s: %s", name, failures)
		}
	}
	cannot := load(t, routes, `
tests:
- {name: no place, request: {tool: x}, expect: {allowed: true}}
- {name: no route, route: none, request: {tool: x}, expect: {allowed: true}}
- {name: pattern, route: cookie, request: {tool: x}, expect: {allowed: true}}
- {name: elsewhere, route: keys, path: /query, headers: {x-version: "2"}, request: {tool: x}, expect: {allowed: true}}
- {name: nowhere, port: 9, path: /, request: {tool: x}, expect: {allowed: true}}
- {name: no such key, route: keys, principal: {apiKey: bob}, request: {tool: x}, expect: {allowed: true}}
- {name: no tokens here, route: keys, principal: {jwt: {}}, request: {tool: x}, expect: {allowed: true}}
- {name: no users here, route: keys, principal: {basic: bob}, request: {tool: x}, expect: {allowed: true}}
- {name: no certificates here, route: secure, source: {certificate: {commonName: c}}, request: {tool: x}, expect: {allowed: true}}
- {name: no address, route: secure, source: here, request: {tool: x}, expect: {allowed: true}}
- {name: no time, route: secure, now: noon, request: {tool: x}, expect: {allowed: true}}
- {name: no revision, route: secure, protocol: "2020-01-01", request: {tool: x}, expect: {allowed: true}}
- {name: no such target, route: secure, request: {tool: x, target: b}, expect: {allowed: true}}
`)
	want := map[string]string{
		"no place":             "there are several routes: say which one of cookie, keys, query, secure (--route, or route: in a test)",
		"no route":             `route "none" is not there; routes are cookie, keys, query, secure`,
		"pattern":              `route "cookie": matches paths by the pattern "/c[0-9]+": say which path`,
		"elsewhere":            `a request for localhost/query on port 3000 goes to route "query" and not to "keys": say host, path, port or headers that lead there`,
		"nowhere":              "a request for localhost/ on port 9: no listener of this port serves the host name",
		"no such key":          `route "keys": no key of the route's apiKey has the metadata map[id:bob]; there are map[id:ci team:build], map[id:dev]`,
		"no tokens here":       `route "keys": no jwtAuth or mcpAuthentication on the route verifies tokens: the principal would be anonymous`,
		"no users here":        `route "keys": no basicAuth on the route knows users: the principal would be anonymous`,
		"no certificates here": `listener "secure" asks for no certificate: it has no tls.root`,
		"no address":           `the source "here" is no IP address`,
		"no time":              `now: "noon" is no time of RFC 3339, e.g. 2026-11-26T09:00:00Z`,
		"no revision":          `"2020-01-01" is no revision of MCP; revisions are 2024-11-05, 2025-03-26, 2025-06-18, 2025-11-25, 2026-07-28`,
		"no such target":       `target "b" is not there; targets are tools/a`,
	}
	got := map[string]string{}
	for _, r := range cannot.Run(t.Context(), nil) {
		for _, f := range r.Failures {
			got[r.Name] += f.Got
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("cannot be run (-want +got):\n%s", diff)
	}
}

const kinds = `
mcp:
  policies:
    jwtAuth: {issuer: i, jwks: {url: "https://i.example.com/jwks"}}
    mcpAuthorization:
      rules:
      - deny: '(has(mcp.resource) && mcp.resource.name.startsWith("file:///secret")) || (has(mcp.prompt) && mcp.prompt.name == "b")'
      - allow: '!has(mcp.tool) || has(mcp.tool.annotations.readOnlyHint) && mcp.tool.annotations.readOnlyHint'
  targets:
  - name: a
    mcp: {host: "https://a.example.com/mcp"}
    policies: {backendAuth: {passthrough: {}}}
  - name: b
    sse: {host: "https://b.example.com/sse"}
    policies:
      backendAuth:
        credentials:
        - {key: {secret: one}, location: {header: {name: X-One, prefix: "Key "}}}
        - {key: {file: /two}, location: {cookie: {name: two}}}
        - {key: inline, location: {queryParameter: {name: three}}}
`

// Every kind of item in both eras, and every credential by its name.
func TestItemsAndCredentials(t *testing.T) {
	for _, protocol := range []string{"2025-06-18", "2026-07-28"} {
		suite := load(t, kinds, strings.ReplaceAll(`
targets:
  a:
    tools: [{name: r, annotations: {readOnlyHint: true}, text: hello}, {name: w, annotations: {readOnlyHint: false}}, {name: s, annotations: {readOnlyHint: true}, result: {content: [], structuredContent: {n: 1}, isError: true}}, {name: u}]
    prompts: [{name: a, text: say}, b]
    resources: ["file:///open", {uri: "file:///secret/x", text: no}]
    templates: ["file:///open/{x}", "file:///secret/{x}"]
  b: {tools: [{name: r, annotations: {readOnlyHint: true}}]}
tests:
- {name: lists, protocol: REV, expect: {list: {tools: [a_r, a_s, b_r], prompts: [a_a], resources: ["a+file:///open"], templates: ["a+file:///open/{x}"]}, notListed: {prompts: [a_b]}}}
- {name: text, protocol: REV, request: {tool: a_r}, expect: {received: {text: hello, isError: false, status: 200}}}
- {name: result, protocol: REV, request: {tool: s, target: mcp/a}, expect: {received: {structuredContent: {n: 1}, isError: true}}}
- {name: no annotation is an error, protocol: REV, request: {tool: a_u}, expect: {refused: true}}
- {name: not there, protocol: REV, request: {tool: a_z}, expect: {refused: "Unknown tool: a_z"}}
- {name: prompt, protocol: REV, request: {prompt: a, target: a, arguments: {x: "1"}}, expect: {allowed: true, sent: {arguments: {x: "1"}}, received: {text: say}}}
- {name: no prompt, protocol: REV, request: {prompt: b, target: a}, expect: {refused: "rules[0] deny"}}
- {name: resource, protocol: REV, request: {resource: "file:///open", target: a}, expect: {allowed: true, sent: {target: a}}}
- {name: no resource, protocol: REV, request: {resource: "a+file:///secret/x"}, expect: {refused: true}}
- {name: template, protocol: REV, request: {template: "file:///open/{x}", target: a}, expect: {allowed: true}}
- {name: no template, protocol: REV, request: {template: "file:///secret/{x}", target: a}, expect: {refused: true}}
- {name: unknown method, protocol: REV, request: {method: tools/drop}, expect: {refused: Method not found}}
- {name: repeated, protocol: REV, request: {tool: a_r, repeat: 3}, expect: {allowed: true}}
- {name: passthrough, protocol: REV, principal: {jwt: {sub: s}}, request: {tool: a_r}, expect: {sent: {headers: {authorization: "Bearer <callers-token>"}}}}
- {name: nothing to pass through, protocol: REV, request: {tool: a_r}, expect: {sent: {headers: {authorization: null}}}}
- {name: several, protocol: REV, request: {tool: b_r}, expect: {sent: {headers: {x-one: "Key <secret:one>", cookie: "two=<file:/two>"}, url: "https://b.example.com/sse?three=<credential>"}}}
`, "REV", `"`+protocol+`"`))
		for name, failures := range outcomes(suite.Run(t.Context(), nil)) {
			if failures != nil {
				t.Errorf("%s, %s: %s", protocol, name, failures)
			}
		}
	}
}

// What is fetched from others is told by its name, and by the same rules.
func TestFetchedCredentials(t *testing.T) {
	config := `
mcp:
  policies:
    jwtAuth: {issuer: i, jwks: {url: "https://i.example.com/jwks"}}
  targets:
  - {name: basic, mcp: {host: "https://h"}, policies: {backendAuth: {basic: {username: svc, password: {env: PASSWORD}}}}}
  - {name: oauth, mcp: {host: "https://h"}, policies: {backendAuth: {oauth: {tokenUrl: "https://t.example.com", clientId: c, privateKey: {file: /key.pem}, location: {header: {name: X-Token}}}}}}
  - {name: exchange, mcp: {host: "https://h"}, policies: {backendAuth: {tokenExchange: {tokenUrl: "https://t.example.com", clientId: c, clientSecret: s}}}}
  - {name: gcp, mcp: {host: "https://h"}, policies: {backendAuth: {gcp: {type: idToken}}}}
  - {name: azure, mcp: {host: "https://h"}, policies: {backendAuth: {azure: {implicit: {}}}}}
  - {name: aws, mcp: {host: "https://h"}, policies: {backendAuth: {aws: {region: eu-west-1, serviceName: x}}}}
`
	suite := load(t, config, `
tests:
- {name: basic, request: {tool: x, target: basic}, expect: {sent: {headers: {authorization: "Basic svc:<env:PASSWORD>"}}}}
- {name: oauth, request: {tool: x, target: oauth}, expect: {sent: {headers: {x-token: "<oauth-token>", authorization: null}}}}
- {name: exchange, principal: {jwt: {sub: s}}, request: {tool: x, target: exchange}, expect: {sent: {headers: {authorization: "Bearer <exchanged-token>"}}}}
- {name: nothing to exchange, request: {tool: x, target: exchange}, expect: {refused: {status: 401, because: the caller showed none}}}
- {name: gcp, request: {tool: x, target: gcp}, expect: {sent: {headers: {authorization: "Bearer <gcp-token>"}}}}
- {name: azure, request: {tool: x, target: azure}, expect: {sent: {headers: {authorization: "Bearer <azure-token>"}}}}
- {name: aws, request: {tool: x, target: aws}, expect: {sent: {headers: {authorization: "<aws-signature>"}}}}
`)
	for name, failures := range outcomes(suite.Run(t.Context(), nil)) {
		if failures != nil {
			t.Errorf("%s: %s", name, failures)
		}
	}
}

// Rules see the time and the certificate that a test says.
func TestTimeAndCertificate(t *testing.T) {
	suite := load(t, `
binds:
- port: 3000
  listeners:
  - tls: {cert: /c.pem, key: /k.pem, root: /ca.pem}
    routes:
    - backends:
      - mcp:
          policies:
            mcpAuthorization:
              rules:
              - allow: request.startTime.getHours("UTC") >= 9 && has(source.spiffeId) && source.spiffeId == "spiffe://acme.example/ci"
              - allow: has(source.subjectCn) && source.subjectCn == "admin" && "admin.acme.example" in source.subjectAltNames
          targets:
          - {name: a, mcp: {host: "https://a.example.com/mcp"}}
`, `
tests:
- {name: in time, now: 2026-11-26T09:00:00Z, source: {certificate: {subjectAltNames: ["spiffe://acme.example/ci"]}}, request: {tool: x}, expect: {allowed: true, listed: [x]}}
- {name: too early, now: "2026-11-26T08:59:59Z", source: {certificate: {subjectAltNames: ["spiffe://acme.example/ci"]}}, request: {tool: x}, expect: {allowed: false, list: []}}
- {name: another, now: 2026-11-26T09:00:00Z, source: {certificate: {subjectAltNames: ["spiffe://acme.example/cd"]}}, request: {tool: x}, expect: {refused: true}}
- {name: none, now: 2026-11-26T09:00:00Z, request: {tool: x}, expect: {refused: true}}
- {name: by names, source: {certificate: {commonName: admin, organization: Acme, subjectAltNames: [admin.acme.example, a@acme.example, 10.0.0.1]}}, request: {tool: x}, expect: {allowed: true}}
`)
	for name, failures := range outcomes(suite.Run(t.Context(), nil)) {
		if failures != nil {
			t.Errorf("%s: %s", name, failures)
		}
	}
}

// No test passes by what it does not look at: each expectation fails on what is otherwise.
const agents = `
mcp:
  port: 3000
  targets:
  - name: coder
    a2a: {host: "https://coder.example.com/rpc"}
    policies:
      mcpAuthorization: {rules: [{deny: 'has(a2a.skill) && a2a.skill == "deploy"'}, {deny: 'a2a.method == "tasks/cancel"'}, 'true']}
      backendAuth: {key: {secret: one}}
  - {name: writer, mcp: {host: "https://writer.example.com/"}, policies: {a2a: {}}}
  - {name: files, mcp: {host: "https://files.example.com/mcp"}}
`

// Agents are asked at their own addresses, in either revision, and MCP servers beside them as if they were alone.
func TestAgents(t *testing.T) {
	suite := load(t, agents, `
targets:
  coder: {skills: [review, {id: deploy, text: done}]}
  writer: {skills: [{id: letter, text: dear}]}
tests:
- {name: skills, request: {skill: review, target: coder}, expect: {list: {skills: [review]}, listed: {skills: [review]}, notListed: {skills: [deploy]}, allowed: true, received: {text: ok},
    sent: {target: coder, url: "https://coder.example.com/rpc", headers: {authorization: "Bearer <secret:one>", mcp-protocol-version: null}}}}
- {name: no skill, request: {skill: deploy, target: coder}, expect: {refused: {because: "rules[0] deny", status: 200}}}
- {name: another's, request: {skill: letter, target: writer, text: write}, expect: {allowed: true, received: {text: dear}, list: {skills: [letter]}}}
- {name: method, request: {method: tasks/cancel, target: coder, params: {id: t}}, expect: {refused: "rules[1] deny"}}
- {name: method of 1.0, request: {method: SendMessage, target: coder, params: {message: {messageId: m, role: ROLE_USER, parts: [{text: hi}], metadata: {skillId: review}}}}, expect: {received: {text: ok}}}
- {name: a tool, request: {tool: read_file}, expect: {allowed: true, list: [read_file], sent: {target: files}}}
`)
	for name, failures := range outcomes(suite.Run(t.Context(), nil)) {
		if failures != nil {
			t.Errorf("%s: %s", name, failures)
		}
	}
	suite = load(t, agents, `
tests:
- {name: which, request: {skill: review}, expect: {allowed: true}}
- {name: no agent, request: {skill: review, target: files}, expect: {allowed: true}}
- {name: nowhere, request: {skill: review, target: nowhere}, expect: {allowed: true}}
`)
	for name, want := range map[string]string{"which": "say for which agent", "no agent": "is no A2A agent", "nowhere": "is not there"} {
		if got := outcomes(suite.Run(t.Context(), nil))[name]; !strings.Contains(strings.Join(got, " "), want) {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestEachExpectationFails(t *testing.T) {
	suite := load(t, kinds, `
targets: {a: {tools: [{name: r, annotations: {readOnlyHint: true}, text: hello, result: {content: [{type: text, text: hi}], structuredContent: {n: 1}}}]}}
tests:
- {name: listed, expect: {listed: [a_x]}}
- {name: notListed, expect: {notListed: [a_r]}}
- {name: list, expect: {list: [a_r, a_x]}}
- {name: list of nothing, expect: {list: []}}
- {name: allowed, request: {tool: a_r}, expect: {allowed: false}}
- {name: refused, request: {tool: a_r}, expect: {refused: true}}
- {name: because, request: {tool: a_x}, expect: {refused: not this}}
- {name: status, request: {tool: a_x}, expect: {refused: {status: 403}}}
- {name: target, request: {tool: a_r}, expect: {sent: {target: b}}}
- {name: header, request: {tool: a_r}, expect: {sent: {headers: {accept: no}}}}
- {name: no header, request: {tool: a_r}, expect: {sent: {headers: {accept: null}}}}
- {name: absent header, request: {tool: a_r}, expect: {sent: {headers: {x-not: there}}}}
- {name: arguments, request: {tool: a_r, arguments: {a: 1}}, expect: {sent: {arguments: {a: 2}}}}
- {name: no arguments, request: {tool: a_r, arguments: {a: 1}}, expect: {sent: {arguments: {}}}}
- {name: url, request: {tool: a_r}, expect: {sent: {url: "https://b"}}}
- {name: env, request: {tool: a_r}, expect: {sent: {env: {A: b}}}}
- {name: text, request: {tool: a_r}, expect: {received: {text: hello}}}
- {name: structured, request: {tool: a_r}, expect: {received: {structuredContent: {n: 2}}}}
- {name: isError, request: {tool: a_r}, expect: {received: {isError: true}}}
- {name: answer header, request: {tool: a_r}, expect: {received: {headers: {content-type: text/plain}}}}
- {name: answer status, request: {tool: a_r}, expect: {received: {status: 202}}}
`)
	for _, r := range suite.Run(t.Context(), nil) {
		if r.Passed() {
			t.Errorf("%s passed", r.Name)
		} else if r.Failures[0].What == "" || !strings.HasPrefix(r.Failures[0].Place, "test.yaml:") {
			t.Errorf("%s: %+v", r.Name, r.Failures)
		}
	}
	if got := suite.Run(t.Context(), regexp.MustCompile("^list")); len(got) != 3 {
		t.Errorf("--run ^list ran %d", len(got))
	}
}

// JUnit's consumers count: what is counted must be what is there.
func TestJUnit(t *testing.T) {
	suite := load(t, kinds, `
tests:
- {name: "good <&>", request: {tool: a_r}, expect: {refused: true}}
- {name: bad, request: {tool: a_r}, expect: {allowed: true}}
- {name: cannot, route: none, request: {tool: a_r}, expect: {allowed: true}}
`)
	var out bytes.Buffer
	if err := policytest.JUnit(&out, suite.Run(t.Context(), nil)); err != nil {
		t.Fatal(err)
	}
	var got struct {
		XMLName                 xml.Name `xml:"testsuites"`
		Tests, Failures, Errors int      `xml:",attr"`
		Time                    float64  `xml:"time,attr"`
		Suites                  []struct {
			Name  string `xml:"name,attr"`
			Tests int    `xml:"tests,attr"`
			Cases []struct {
				Name      string  `xml:"name,attr"`
				Classname string  `xml:"classname,attr"`
				Time      float64 `xml:"time,attr"`
				Line      int     `xml:"line,attr"`
				Failure   *struct {
					Message string `xml:"message,attr"`
					Text    string `xml:",chardata"`
				} `xml:"failure"`
				Error *struct {
					Message string `xml:"message,attr"`
				} `xml:"error"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	if len(got.Suites) != 1 || got.Suites[0].Name != "test.yaml" || got.Suites[0].Tests != 3 {
		t.Fatalf("suites %+v", got.Suites)
	}
	cases := got.Suites[0].Cases
	if len(cases) != 3 || cases[0].Name != "good <&>" || cases[0].Failure != nil || cases[0].Error != nil || cases[0].Line != 4 || cases[0].Classname != "test.yaml" {
		t.Errorf("cases %+v", cases)
	}
	if f := cases[1].Failure; f == nil || !strings.Contains(f.Message, "allowed: expected true") || !strings.Contains(f.Text, "decided by backend/mcp mcpAuthorization: no allow rule matches  c.yaml:5") {
		t.Errorf("failure %+v", f)
	}
	if e := cases[2].Error; e == nil || !strings.Contains(e.Message, `route "none" is not there`) {
		t.Errorf("error %+v", e)
	}
}
