package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/internal/resource"
)

func validateCommand(env Env) *cobra.Command {
	var src source
	cmd := &cobra.Command{
		Use:   "validate -f FILE",
		Short: "Check a configuration without a control plane",
		Long: "Check a configuration without a control plane, with the code that apply and the proxies run: syntax, references,\n" +
			"rules, patterns, certificates. What only the control plane knows (grants, other sets) is checked at apply.",
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			set, err := src.load(env)
			if err != nil {
				return err
			}
			diagnostics := controlplane.Validate(set.Objects, set.Single)
			printDiagnostics(env.Stderr, diagnostics)
			if resource.Failed(diagnostics) {
				return &codedError{code: Invalid}
			}
			kinds := map[string]int{}
			for _, o := range set.Objects {
				kinds[resource.Kind(o)]++
			}
			fmt.Fprintf(env.Stdout, "valid: %s, %s, %s\n", count(kinds["route"], "route"), count(kinds["backend"], "backend"), count(kinds["target"], "target"))
			return nil
		},
	}
	src.flags(cmd)
	return cmd
}
