package resource

import (
	"fmt"

	"github.com/sluicegate/sluice/internal/policy"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
)

// headerValues warns of header values that cannot be had for some requests, which are refused then.
func (v *validator) headerValues(o *adminv1.Object, block string, p *policyv1.Policies) {
	if v.Partial || p == nil {
		return
	}
	for kind, m := range map[string]*policyv1.HeaderModifier{"requestHeaderModifier": p.GetRequestHeaderModifier(), "responseHeaderModifier": p.GetResponseHeaderModifier()} {
		for part, values := range map[string]map[string]*policyv1.Value{"add": m.GetAdd(), "set": m.GetSet()} {
			for name, value := range values {
				expression := value.GetExpression()
				if expression == "" {
					continue
				}
				field := block + "." + kind + "." + part + "." + name
				if others := policy.RefusesOthers(expression); others != "" {
					v.tell(severityWarning, o, field, fmt.Sprintf("the value reads an item that %s does not name: it fails there, and what it fails for is refused", others),
						"ask first, and say what the value is otherwise: `has(mcp.tool) ? mcp.tool.name : \"-\"`")
				}
				v.unfilled(o, field, "value", expression)
			}
		}
	}
}
