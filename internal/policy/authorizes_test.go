package policy

import "testing"

func TestDenyRefusesOthers(t *testing.T) {
	for rule, want := range map[string]bool{
		`mcp.tool.name == "x"`:                               true,
		`mcp.tool.name == "x" || has(jwt.sub)`:               true,
		`mcp.tool.annotations.destructiveHint`:               true,
		`has(mcp.tool) && mcp.tool.name == "x"`:              false,
		`!has(jwt.sub)`:                                      false,
		`mcp.method == "tools/call" && mcp.tool.name == "x"`: false, // a list does not know the method of what is no tool
		`mcp.tool.nam ==`:                                    false,
		``:                                                   false,
	} {
		if got := DenyRefusesOthers(rule); got != want {
			t.Errorf("DenyRefusesOthers(%q) = %t, want %t", rule, got, want)
		}
	}
}
