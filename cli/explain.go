package cli

import (
	"context"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/controlplane"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type explainOptions struct {
	connection
	source
	output
}

func explainCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{Use: "explain", Short: "Tell where policies come from, and what they decide", Args: cobra.NoArgs, RunE: usage}
	cmd.AddCommand(explainTarget(env), explainDecision(env))
	return cmd
}

func explainTarget(env Env) *cobra.Command {
	var opt explainOptions
	cmd := &cobra.Command{
		Use:   "target NAME",
		Short: "Print each effective policy of a target, where it came from and what it replaced",
		Long: "Print each effective policy of a target, the level and line it came from, and what it replaced.\n" +
			"With -f it reads files instead of asking the control plane. Where two backends have a target of that name, say BACKEND/NAME.",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e, err := explain(cmd.Context(), env, opt, args[0])
			if err != nil {
				return err
			}
			return opt.print(env.Stdout, explanationValue(e), func(w io.Writer) error { return printExplanation(w, e) })
		},
	}
	opt.connection.flags(cmd)
	opt.output.flag(cmd)
	cmd.Flags().VarP(&opt.files, "file", "f", "configuration to explain instead of the stored one")
	return cmd
}

func explain(ctx context.Context, env Env, opt explainOptions, target string) (*adminv1.ExplainResponse, error) {
	if len(opt.files) > 0 {
		set, err := opt.load(env)
		if err != nil {
			return nil, err
		}
		e, err := controlplane.ExplainOffline("default", set.Objects, target)
		if err != nil {
			return nil, &codedError{Invalid, fmt.Errorf("sluice: %w", err)}
		}
		return e, nil
	}
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return nil, err
	}
	defer closeConn()
	return client.Explain(ctx, &adminv1.ExplainRequest{Tenant: opt.tenant, Target: target})
}

// explanationValue is {"target", "backend", "policies": {KIND: {"from", "place", "value", …}}}. A kind that differs between
// the routes that reach the target has {"routes": {ROUTE: {"from", …}}} instead. Enforced rules that hold beside others
// stand in those' "and".
func explanationValue(e *adminv1.ExplainResponse) any {
	byKind := map[string]map[string]any{} // kind → route → policy
	for _, r := range e.Routes {
		for kind, all := range byPolicyKind(r.Policies) {
			if byKind[kind] == nil {
				byKind[kind] = map[string]any{}
			}
			byKind[kind][r.Route] = policiesValue(all)
		}
	}
	policies := map[string]any{}
	for kind, routes := range byKind {
		var first any
		same := len(routes) == len(e.Routes)
		for _, p := range routes {
			if first == nil {
				first = p
			}
			same = same && reflect.DeepEqual(first, p)
		}
		if same {
			policies[kind] = first
		} else {
			policies[kind] = map[string]any{"routes": routes}
		}
	}
	return map[string]any{"target": e.Target, "backend": e.Backend, "revision": e.Revision, "policies": policies}
}

func byPolicyKind(policies []*adminv1.PolicyExplanation) map[string][]*adminv1.PolicyExplanation {
	out := map[string][]*adminv1.PolicyExplanation{}
	for _, p := range policies {
		out[p.Kind] = append(out[p.Kind], p)
	}
	return out
}

// policiesValue is all that is in force of one kind: of most kinds one policy, of mcpAuthorization also each that a level
// enforces. The one that is not enforced, if there is one, comes first: it is what a level below can replace.
func policiesValue(all []*adminv1.PolicyExplanation) map[string]any {
	first := max(0, slices.IndexFunc(all, func(p *adminv1.PolicyExplanation) bool { return !p.Enforced }))
	v := policyValue(all[first])
	var rest []any
	for i, p := range all {
		if i != first {
			rest = append(rest, policyValue(p))
		}
	}
	if rest != nil {
		v["and"] = rest
	}
	return v
}

func policyValue(p *adminv1.PolicyExplanation) map[string]any {
	v := map[string]any{"from": p.From, "value": p.Value.AsInterface()}
	if p.Place != "" {
		v["place"] = p.Place
	}
	if p.Enforced {
		v["enforced"] = true
	}
	if p.NotApplicable != "" {
		v["notApplicable"] = p.NotApplicable
	}
	var replaced []any
	for _, r := range p.Replaced {
		replaced = append(replaced, map[string]any{"from": r.From, "place": r.Place, "droppedFields": append([]string{}, r.DroppedFields...), "value": r.Value.AsInterface()})
	}
	if replaced != nil {
		v["replaced"] = replaced
	}
	return v
}

func printExplanation(w io.Writer, e *adminv1.ExplainResponse) error {
	for i, r := range e.Routes {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "target %s of backend %s", e.Target, e.Backend)
		if r.Route != "" {
			fmt.Fprintf(w, " through route %s of listener %s", r.Route, r.Listener)
		} else {
			fmt.Fprint(w, ", reached by no route")
		}
		fmt.Fprintln(w)
		if len(r.Policies) == 0 {
			fmt.Fprintln(w, "  no policy of any kind: everything is admitted, nothing is changed")
		}
		for _, p := range r.Policies {
			if err := printPolicy(w, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func printPolicy(w io.Writer, p *adminv1.PolicyExplanation) error {
	fmt.Fprintf(w, "\n%s\n  from      %s%s%s\n", p.Kind, p.From, at(p.Place), map[bool]string{true: "  (enforced)"}[p.Enforced])
	if p.NotApplicable != "" {
		fmt.Fprintf(w, "  no effect %s\n", p.NotApplicable)
	}
	for _, r := range p.Replaced {
		fmt.Fprintf(w, "  replaces  %s%s\n", r.From, at(r.Place))
		if len(r.DroppedFields) > 0 {
			fmt.Fprintf(w, "            and drops its %s\n", strings.Join(r.DroppedFields, ", "))
		}
	}
	data, err := asYAML(p.Value.AsInterface())
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		fmt.Fprint(w, "    ", line)
	}
	return nil
}

func at(place string) string {
	if place == "" {
		return ""
	}
	return "  " + told(place)
}
