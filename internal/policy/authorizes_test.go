package policy

import "testing"

func TestDenyFails(t *testing.T) {
	for rule, want := range map[string][2]bool{ // on a server, on an agent
		`a2a.method == "tasks/cancel"`:                             {true, false},
		`a2a.skill == "x" && has(jwt.sub)`:                         {false, false}, // whom it does not concern it lets pass
		`has(a2a.skill) && a2a.skill == "x"`:                       {false, false},
		`mcp.tool.name == "x"`:                                     {false, true},
		`mcp.tool.annotations.destructiveHint`:                     {false, true},
		`mcp.method == "tools/call"`:                               {false, true},
		`has(mcp.tool) && mcp.tool.name == "x"`:                    {false, false},
		`a2a.method == "x" || mcp.tool.name == "x"`:                {true, true},
		`has(a2a.method) ? a2a.skill == "x" : mcp.tool.name == ""`: {false, false},
		`jwt.sub == "x"`:                                           {false, false},
		`true`:                                                     {false, false},
		`a2a.`:                                                     {false, false},
	} {
		if got := [2]bool{DenyFails(rule, false), DenyFails(rule, true)}; got != want {
			t.Errorf("DenyFails(%q) = %t, want %t", rule, got, want)
		}
	}
}

func TestDenyRefusesOthers(t *testing.T) {
	for rule, want := range map[string]bool{
		`mcp.tool.name == "x"`:                               true,
		`mcp.tool.name == "x" || has(jwt.sub)`:               true,
		`mcp.tool.annotations.destructiveHint`:               true,
		`has(mcp.tool) && mcp.tool.name == "x"`:              false,
		`!has(jwt.sub)`:                                      false,
		`mcp.method == "tools/call" && mcp.tool.name == "x"`: false, // a list does not know the method of what is no tool
		`a2a.method == "x"`:                                  false, // it is wrong for tools as well
		`mcp.tool.nam ==`:                                    false,
		``:                                                   false,
	} {
		if got := DenyRefusesOthers(rule); got != want {
			t.Errorf("DenyRefusesOthers(%q) = %t, want %t", rule, got, want)
		}
	}
}
