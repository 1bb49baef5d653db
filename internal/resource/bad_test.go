package resource

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestBad holds what is said about files that are wrong: all at once, each with its place and the way out.
// Every line of want is one diagnostic without `f.yaml:`; notes and warnings are left out.
func TestBad(t *testing.T) {
	target := func(policies string) string {
		return "mcp:\n  targets:\n  - name: t\n    mcp: {host: http://h}\n    policies:\n      " + policies + "\n"
	}
	for _, tt := range []struct{ name, yaml, want string }{
		// YAML itself.
		{"empty", "# nothing\n", `1:1: the file is empty; to remove all that a set holds, write binds: []`},
		{"not a map", "- a\n", `1:1: expected a map, found a list`},
		{"syntax", "a: [1\n", `1:4: sequence end token ']' not found`},
		{"tab", "a:\n\tb: 1\n", "2:1: found character '\t' that cannot start any token"},
		{"not UTF-8", "mcp:\n  \xff\n", `2:3: the file is not valid UTF-8`},
		{"twice", "mcp: {targets: [], targets: []}\n", `1:20: mcp: "targets" is given twice, first in line 1; remove one`},
		{"tag", "mcp: {targets: !!seq []}\n", "1:6: mcp: \"targets\" is missing; write targets: [] for a backend without any\n1:16: mcp.targets: the tag !!seq is not supported; leave it out; quotes make a string"},
		{"no anchor", "mcp: *x\n", `1:6: mcp: no anchor &x before this alias`},
		{"anchor in itself", "mcp: &x {targets: *x}\n", "1:9: mcp: \"targets\" is missing; write targets: [] for a backend without any\n1:19: mcp.targets: the alias *x stands within its own anchor"},
		{"deep", strings.Repeat("[", 200), `1:65: more than 64 maps and lists within each other`},
		{"merge of a string", "mcp: {<<: x, targets: []}\n", `1:7: mcp: << wants a map or a list of maps`},

		// Names of fields.
		{"unknown, near", target("mcpAuthorisation: {}"), `6:7: mcp.targets[0].policies: unknown field "mcpAuthorisation"; did you mean "mcpAuthorization"?`},
		{"unknown, alias near", target("backendTLS: {snj: h}"), `6:20: mcp.targets[0].policies.backendTLS: unknown field "snj"; did you mean "sni"?`},
		{"unknown, far", "mcp: {targets: []}\nzzzzzzzz: 1\n", `2:1: unknown field "zzzzzzzz"; valid are backends, binds, enforced, mcp, policies, sessionTtl`},
		{"several at once", "mcp:\n  ports: 1\n  targets:\n  - nam: a\n  - name: b\n    mpc: {}\n  - name: c\n    stdio: {cmd: [x], arg: []}\n", `2:3: mcp: unknown field "ports"; did you mean "port"?
4:5: mcp.targets[0]: "name" is missing
6:5: mcp.targets[1]: unknown field "mpc"; did you mean "mcp"?
8:18: mcp.targets[2].stdio.cmd: expected a string, found a list
8:23: mcp.targets[2].stdio: unknown field "arg"; did you mean "args"?`},
		{"of agentgateway", "mcp: {targets: []}\nllm: {}\n", `2:1: "llm" is not supported; only MCP is served`},
		{"of agentgateway, deeper", "mcp: {statefulMode: stateful, targets: []}\n", `1:7: mcp: "statefulMode" is not supported; remove it: sessions are always kept, sealed in their ids, and stateless clients are served as such`},
		{"policy of agentgateway", target("extAuthz: {host: x}"), `6:7: mcp.targets[0].policies: "extAuthz" is not supported; use mcpAuthorization`},
		{"backend of agentgateway", "binds:\n- port: 1\n  listeners:\n  - routes:\n    - backends:\n      - host: h:80\n", "6:9: binds[0].listeners[0].routes[0].backends[0]: \"host\" is not supported; use mcp: {targets: …}"},
		{"openapi", "mcp:\n  targets:\n  - name: t\n    openapi: {}\n", `4:5: mcp.targets[0]: "openapi" is not supported; run an MCP server for the API`},
		{"both spellings", target("backendTLS: {sni: a, hostname: b}"), `6:28: mcp.targets[0].policies.backendTLS: "sni" and "hostname" are the same field; remove one`},
		{"both places", "backends:\n- name: b\n  policies:\n    a2a: {}\n  mcp:\n    targets: []\n    policies:\n      a2a: {}\n", `8:7: backends[0].mcp.policies.a2a: also given at backends[0].policies.a2a in line 4; one backend has one policy of a kind; remove one`},

		// Types and values.
		{"string for number", "mcp: {port: '3000', targets: []}\n", `1:13: mcp.port: expected a number, found a string; leave out the quotes`},
		{"port too large", "mcp: {port: 70000, targets: []}\n", `1:7: mcp.port: 70000 is no port; a port is from 1 to 65535`},
		{"negative", "mcp: {port: -1, targets: []}\n", `1:13: mcp.port: -1 is no whole number from 0 to 4294967295`},
		{"number for string", "mcp: {targets: [{name: 1, stdio: {cmd: 2, args: [true]}}]}\n", `1:24: mcp.targets[0].name: expected a string, found a number; quote it: "1"
1:40: mcp.targets[0].stdio.cmd: expected a string, found a number; quote it: "2"
1:50: mcp.targets[0].stdio.args[0]: expected a string, found true or false; quote it: "true"`},
		{"string for list", "mcp: {policies: {cors: {allowOrigins: '*'}}, targets: []}\n", `1:39: mcp.policies.cors.allowOrigins: expected a list, found a string; write ["*"]`},
		{"string for bool", target("backendTLS: {insecure: 'true'}"), `6:30: mcp.targets[0].policies.backendTLS.insecure: expected true or false, found a string; leave out the quotes`},
		{"nothing", target("mcpAuthorization:"), `6:7: mcp.targets[0].policies.mcpAuthorization: expected a map, found nothing; remove the key, or write {}`},
		{"nothing at all", "mcp:\n  targets:\n", `2:3: mcp.targets: expected a list, found nothing; remove the key, or give it a value`},
		{"duration", "sessionTtl: 5\nmcp: {targets: []}\n", `1:13: sessionTtl: expected a duration, found a number; give its unit: 5s`},
		{"no duration", "sessionTtl: soon\nmcp: {targets: []}\n", `1:13: sessionTtl: "soon" is no duration; write e.g. 500ms, 5s, 10m or 24h`},
		{"zero duration", "sessionTtl: 0s\nmcp: {targets: []}\n", `1:1: sessionTtl: the duration is not above zero; remove it for the default`},
		{"enum", "mcp: {prefixMode: allways, targets: []}\n", `1:19: mcp.prefixMode: unknown value "allways"; did you mean "always"?`},
		{"enum, far", "mcp: {failureMode: x, targets: []}\n", `1:20: mcp.failureMode: unknown value "x"; valid are failClosed, failOpen`},
		{"two of a oneof", target("backendAuth: {key: x, passthrough: {}}"), `6:29: mcp.targets[0].policies.backendAuth: "key" and "passthrough" cannot both be set; remove one`},
		{"none of a oneof", target("backendAuth: {}"), `6:20: mcp.targets[0].policies.backendAuth: one of key, passthrough, aws, gcp, azure, basic, oauth or tokenExchange must be set`},
		{"http token endpoint", target("backendAuth: {oauth: {tokenUrl: 'http://as/token', clientId: c, authMethod: none}}"), `6:29: mcp.targets[0].policies.backendAuth.oauth.tokenUrl: is http, which would show secrets on the way; write https (http is for loopback addresses alone)`},
		{"no way to authenticate", target("backendAuth: {tokenExchange: {tokenUrl: 'https://as/token', clientId: c}}"), "6:37: mcp.targets[0].policies.backendAuth.tokenExchange: says no way to authenticate: give `clientSecret` or `privateKey`, or write authMethod: none"},
		{"tag of another type", target("backendAuth: {aws: {serviceName: s3, assumeRole: {roleArn: 'arn:aws:iam::123456789012:role/r', tags: [{key: a, expression: '1'}]}}}"), "6:118: mcp.targets[0].policies.backendAuth.aws.assumeRole.tags[0].expression: is of type int, not string: `1`"},
		{"key and credentials", target("backendAuth: {key: x, credentials: []}"), `6:21: mcp.targets[0].policies.backendAuth: "credentials" and "key" cannot both be set; move the key into credentials`},
		{"two sources", target("backendAuth: {key: {file: a, env: b}}"), `6:36: mcp.targets[0].policies.backendAuth.key: "file" and "env" cannot both be set; remove one`},
		{"redacted", target("backendAuth: {key: '[redacted]'}"), `6:26: mcp.targets[0].policies.backendAuth.key: this is what stands for a credential where it is shown, not its value; give the value, or {sealed: …} as it was shown`},
		{"redacted in a map", target("ai: {defaults: {a: ['[redacted]']}}"), `6:27: mcp.targets[0].policies.ai.defaults.a[0]: this is what stands for a credential where it is shown, not its value; give the value, or {sealed: …} as it was shown`},
		{"empty key", target("backendAuth: {key: ''}"), `6:26: mcp.targets[0].policies.backendAuth.key: the credential is empty`},
		{"deny and rules", target("ai: {promptGuard: [{regex: {deny: [], rules: []}}]}"), `6:45: mcp.targets[0].policies.ai.promptGuard[0].regex: "deny" and "rules" cannot both be set; deny is short for action: reject with rules`},
		{"octal in JSON", "mcp: {policies: {jwtAuth: {jwks: {keys: [007]}}}, targets: []}\n", `1:42: mcp.policies.jwtAuth.jwks.keys[0]: 007 is no plain decimal number`},
		{"issuer and providers", "mcp: {policies: {jwtAuth: {issuer: i, providers: []}}, targets: []}\n", `1:39: mcp.policies.jwtAuth: "issuer" and "providers" cannot both be set; move it into providers`},

		// Policies that do not compile.
		{"CEL", target("mcpAuthorization: {rules: ['mcp.tool.name ==']}"), `6:34: mcp.targets[0].policies.mcpAuthorization.rules[0]:`},
		{"no rules", target("mcpAuthorization: {rules: []}"), `6:26: mcp.targets[0].policies.mcpAuthorization`},
		{"route kind on a target", target("jwtAuth: {providers: [{issuer: i, jwks: {file: /f}}]}"), `6:7: mcp.targets[0].policies.jwtAuth: acts before a target is known`},

		{"enforced and not", "policies: {cors: {allowOrigins: ['*']}}\nenforced: {cors: {allowOrigins: ['*']}}\n", `1:12: policies.cors: the same level enforces another cors (f.yaml:2), and this one would do nothing; remove one`},

		// Variables.
		{"unset", target("backendAuth: {key: $NOPE}"), `6:26: mcp.targets[0].policies.backendAuth.key: the environment variable NOPE is not set; set it, give a default (${NAME:-default}), or write $$ for a dollar sign`},
		{"open brace", "mcp: {description: '${A', targets: []}\n", `1:20: mcp.description: ${ without its }; write $$ for a dollar sign`},
		{"lone dollar", "mcp: {description: '5 $', targets: []}\n", `1:20: mcp.description: a $ without a variable's name; write $$ for a dollar sign`},
		{"bad variable", "mcp: {description: '${A-B}', targets: []}\n", `1:20: mcp.description: ${A-B} names no variable; write $$ for a dollar sign`},
		{"no number in a variable", "mcp: {port: $SERVICE_A_API_KEY, targets: []}\n", `1:13: mcp.port: the value of $SERVICE_A_API_KEY is no whole number from 0 to 4294967295`},

		// Targets.
		{"bad name", "mcp: {targets: [{name: My_Tool, mcp: {host: http://h}}]}\n", `1:18: mcp.targets[0].name: bad name "My_Tool": a target's begins with a letter and has lower-case letters, digits and -, at most 63; write e.g. "my-tool"`},
		{"no transport", "mcp: {targets: [{name: a}]}\n", `1:17: mcp.targets[0]: one of mcp, sse, stdio or a2a must be set`},
		{"no host", "mcp: {targets: [{name: a, sse: {}}]}\n", `1:32: mcp.targets[0].sse: "host" is missing; write host: https://HOST/sse`},
		{"url", "mcp: {targets: [{name: a, mcp: {url: http://h}}]}\n", `1:33: mcp.targets[0].mcp: "url" is not supported; use host, which may be a URL`},
		{"scheme", "mcp: {targets: [{name: a, mcp: {host: ftp://h}}]}\n", `1:39: mcp.targets[0].mcp.host: the scheme "ftp" is not supported; http and https are`},
		{"password", "mcp: {targets: [{name: a, mcp: {host: http://u:p@h}}]}\n", `1:39: mcp.targets[0].mcp.host: host holds a user or a password; use policies.backendAuth`},
		{"bad host", "mcp: {targets: [{name: a, mcp: {host: 'http://a b'}}]}\n", `1:39: mcp.targets[0].mcp.host: host is no URL and no host name; write host: https://HOST/mcp`},
		{"port without path", "mcp: {targets: [{name: a, mcp: {host: h, port: 80}}]}\n", `1:39: mcp.targets[0].mcp.host: "port" is given without the other of port and path; set both, or write host: http://HOST:PORT/PATH`},
		{"URL and port", "mcp: {targets: [{name: a, mcp: {host: http://h, port: 80, path: /}}]}\n", `1:39: mcp.targets[0].mcp.host: host is a URL, and port and path are given too; give a URL alone, or host, port and path`},
		{"tls by hand", "mcp: {targets: [{name: a, mcp: {host: http://h, tls: true}}]}\n", `1:49: mcp.targets[0].mcp: "tls" is not supported; write https:// in host, or set backendTLS`},
		{"path", "mcp: {targets: [{name: a, mcp: {host: h, port: 80, path: x}}]}\n", `1:52: mcp.targets[0].mcp.path: "x" is no path; it begins with / and has no blanks and no #`},
		{"forwarded", "mcp: {targets: [{name: a, mcp: {host: http://h}, forwardHeaders: [authorization, Cookie, 'a b']}]}\n", `1:67: mcp.targets[0].forwardHeaders[0]: a client's Authorization is never forwarded as it is; use policies.backendAuth: {passthrough: {}}
1:82: mcp.targets[0].forwardHeaders[1]: Cookie cannot be forwarded; remove it
1:90: mcp.targets[0].forwardHeaders[2]: "a b" is no header's name`},
		{"revision", "mcp: {targets: [{name: a, mcp: {host: http://h}, protocolVersions: ['2025-06-17']}]}\n", `1:69: mcp.targets[0].protocolVersions[0]: "2025-06-17" is no revision of MCP that is known here; did you mean "2025-06-18"?`},
		{"session scope", "mcp: {targets: [{name: a, mcp: {host: http://h}, sessionScope: all}]}\n", `1:64: mcp.targets[0].sessionScope: unknown value "all"; valid are principal, none`},
		{"session header", "mcp: {targets: [{name: a, mcp: {host: http://h}, sessionScope: {header: 'a b'}}]}\n", `1:65: mcp.targets[0].sessionScope.header: "a b" is no header's name`},
		{"session scope twice", "mcp: {targets: [{name: a, mcp: {host: http://h}, sessionScope: {share: none, header: x}}]}\n", `1:50: mcp.targets[0].sessionScope: share and header cannot both be set; remove one`},
		{"session scope of nothing", "mcp: {targets: [{name: a, mcp: {host: http://h}, sessionScope: {}}]}\n", `1:50: mcp.targets[0].sessionScope: says nothing; write principal, none or {header: NAME}, or remove it`},
		{"scope without sessions", "mcp: {targets: [{name: a, mcp: {host: http://h}, protocolVersions: ['2026-07-28'], sessionScope: none}]}\n", `1:84: mcp.targets[0].sessionScope: a target that speaks 2026-07-28 alone has no sessions; remove it`},
		{"index in a list", "mcp: {targets: [{name: a, index: 1, mcp: {host: http://h}}]}\n", `1:27: mcp.targets[0]: a target's place in the list is its index; remove it here`},

		// References, routes, listeners.
		{"no backend", "backends: [{name: tools, mcp: {targets: []}}]\nbinds: [{port: 1, listeners: [{routes: [{backends: [{backend: tool}]}]}]}]\n", `2:54: binds[0].listeners[0].routes[0].backends[0].backend: there is no backend "tool"; did you mean "tools"?`},
		{"policies of a reference", "backends: [{name: b, mcp: {targets: []}}]\nbinds: [{port: 1, listeners: [{routes: [{backends: [{backend: b, policies: {}}]}]}]}]\n", `2:66: binds[0].listeners[0].routes[0].backends[0]: "policies" beside a reference to a backend; write it where the backend stands`},
		{"no bind port", "binds: [{listeners: []}]\n", `1:9: binds[0]: "port" is missing`},
		{"listener port", "binds: [{port: 1, listeners: [{port: 2}]}]\n", `1:32: binds[0].listeners[0]: the port belongs to the bind; remove it here`},
		{"protocol", "binds: [{port: 1, listeners: [{protocol: HTTPS}, {name: b, hostname: b, protocol: TCP}]}]\n", `1:32: binds[0].listeners[0].protocol: protocol is HTTPS, and there is no tls; add tls: {cert: …, key: …}
1:83: binds[0].listeners[1].protocol: the protocol "TCP" is not supported; HTTP and HTTPS are`},
		{"tls without key", "binds: [{port: 1, listeners: [{tls: {cert: /c, minVersion: '1.1'}}]}]\n", `1:32: binds[0].listeners[0].tls: "key" is missing
1:48: binds[0].listeners[0].tls.minVersion: "1.1" is no TLS version to ask for; write "1.2" or "1.3"`},
		{"host names", "binds: [{port: 1, listeners: [{hostnames: ['http://x', a, A, '*.b.*']}]}]\n", `1:44: binds[0].listeners[0].hostnames[0]: "http://x" is no host name; write app.example.com, *.example.com or *, without scheme, port or path
1:59: binds[0].listeners[0].hostnames[2]: "A" is given twice; remove one
1:62: binds[0].listeners[0].hostnames[3]: "*.b.*" is no host name; write app.example.com, *.example.com or *, without scheme, port or path`},
		{"matches", "binds: [{port: 1, listeners: [{routes: [{matches: [{path: {}}, {path: {exact: x}}, {path: {regex: '('}}, {method: GET}], backends: [{mcp: {targets: []}}]}]}]}]\n", `1:59: binds[0].listeners[0].routes[0].matches[0].path: one of exact, pathPrefix or regex must be set
1:107: binds[0].listeners[0].routes[0].matches[3]: "method" is not supported; MCP fixes the methods`},
		{"match values", "binds: [{port: 1, listeners: [{routes: [{matches: [{path: {exact: x}}, {path: {regex: '('}}, {headers: [{name: 'a b', value: {exact: x}}]}], backends: [{mcp: {targets: []}}]}]}]}]\n", `1:60: binds[0].listeners[0].routes[0].matches[0].path.exact: the path "x" does not begin with /
1:80: binds[0].listeners[0].routes[0].matches[1].path.regex: missing closing ): ` + "`(`" + `; patterns are RE2
1:106: binds[0].listeners[0].routes[0].matches[2].headers[0].name: "a b" is no header's name`},
		{"weights", "binds: [{port: 1, listeners: [{routes: [{backends: [{weight: 0, mcp: {targets: []}}]}]}]}]\n", `1:42: binds[0].listeners[0].routes[0].backends: all weights are 0; give one backend a weight`},

		// Documents.
		{"kind", "kind: Targt\nname: x\nspec: {}\n", `1:7: kind: unknown kind "Targt"; did you mean "target"?`},
		{"no spec", "kind: Secret\nname: x\n", `1:1: "spec" is missing`},
		{"no name", "kind: Secret\nspec: {value: x}\n", `1:1: "name" is missing`},
		{"metadata", "kind: Secret\nmetadata: {name: x}\nname: x\nspec: {value: x}\n", `2:1: "metadata" is not supported; write name beside kind`},
		{"no target's backend", "kind: Target\nname: x\nspec: {stdio: {cmd: x}}\n", `3:7: spec: "backend" is missing; a target belongs to a backend; name it`},
		{"two backends", "kind: Target\nname: a/x\nspec: {backend: b, stdio: {cmd: x}}\n", `3:17: spec.backend: the name says backend "a", this "b"; remove one of them`},
		{"tenant's name", "kind: Tenant\nname: acme\nspec: {}\n", `2:7: name: the name is "acme", and must be "tenant"; a tenant has one document of its own level; choose the tenant with --tenant`},
		{"secret elsewhere", "kind: Secret\nname: x\nspec: {value: {file: /x}}\n", `3:8: spec.value: a Secret holds its value itself; name the file, variable or other Secret where the credential is used`},
		{"secret without value", "kind: Secret\nname: x\nspec: {}\n", `3:7: spec: "value" is missing`},
		{"name in capitals", "kind: Secret\nname: X\nspec: {value: y}\n", `2:1: name: bad name "X": it has lower-case letters, digits, -, . and _, a letter or digit at both ends, at most 253; write e.g. "x"`},
		{"mixed", "kind: Secret\nname: x\nspec: {value: y}\n---\nmcp: {targets: []}\n", `5:1: documents with a kind and the long or short form cannot be applied together; put them into files of their own, and apply one after the other`},
		{"group", "kind: Group\nname: g\nspec: {tenants: [a, A, a]}\n", `3:21: spec.tenants[1]: "A" is no tenant's name; write e.g. "a"
3:24: spec.tenants[2]: "a" is given twice; remove one`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, got := outcome([]File{{"f.yaml", []byte(tt.yaml)}}, Context{Offline: true})
			var errors []string
			for _, line := range strings.Split(strings.TrimSuffix(got, "\n"), "\n") {
				if !strings.Contains(line, ": note: ") && !strings.Contains(line, ": warning: ") {
					errors = append(errors, strings.TrimPrefix(line, "f.yaml:"))
				}
			}
			got = strings.Join(errors, "\n")
			if strings.HasSuffix(tt.want, "]:") || strings.HasSuffix(tt.want, "mcpAuthorization") || strings.HasSuffix(tt.want, "is known") {
				got = got[:min(len(got), len(tt.want))] // the rest is internal/policy's to say
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
