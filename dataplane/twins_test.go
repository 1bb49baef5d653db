package dataplane

import (
	"strings"
	"testing"

	"github.com/sluicegate/sluice/internal/mcptest"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// What a target does not have and what its rules hide read the same, however the target spells its error's code.
func TestNotFoundWithTwoCodes(t *testing.T) {
	for code, hidden := range map[string]bool{
		`"code":-32602`: true, `"code":-32002`: true, `"code":-32602,"Code":1`: true, `"Code":-32602`: true, `"code":"-32602"`: true, `"code":-32602.0`: true,
		`"code":-32603`: false, `"code":0`: false,
	} {
		for form, answer := range map[string]func(c *mcptest.Conn, body string){
			"json":   func(c *mcptest.Conn, body string) { c.JSON(body) },
			"stream": func(c *mcptest.Conn, body string) { c.Send(eventsHead, chunk("data: "+body+"\n\n"), "0\r\n\r\n") },
		} {
			target := newRaw(t, false, nil)
			target.on("resources/read", func(c *mcptest.Conn, req rawCall) {
				answer(c, `{"jsonrpc":"2.0","id":`+req.id+`,"error":{"message":"own words",`+code+`}}`)
			})
			w := behind(target.URL)
			w.policies["only"] = &policyv1.Policies{McpAuthorization: &policyv1.McpAuthorization{Rules: []*policyv1.AuthorizationRule{
				{Rule: &policyv1.AuthorizationRule_Deny{Deny: `has(mcp.resource) && mcp.resource.name == "x://secret"`}}}}}
			p := w.start(t)
			got := p.post(t, p.initialize(t, "2025-11-25"), `{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"x://y"}}`)
			if strings.Contains(got.body, "own words") == hidden {
				t.Errorf("%s, %s: %s", code, form, got.body)
			}
		}
	}
}
