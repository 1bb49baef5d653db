package cli

import (
	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/internal/resource"
)

func schemaCommand(env Env) *cobra.Command {
	return &cobra.Command{
		Use:   "schema [config|test]",
		Short: "Print the JSON Schema of configuration files, or of policy tests",
		Long: "Print the JSON Schema (draft-07) of configuration files in all their forms, or of files for `sluice test`. An editor with the\n" +
			"YAML language server completes and checks a file by it that begins with\n\n" +
			"  # yaml-language-server: $schema=sluice.schema.json",
		Example:   "  sluice schema > sluice.schema.json\n  sluice schema test > sluice-test.schema.json",
		Args:      cobra.MatchAll(cobra.MaximumNArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"config", "test"},
		RunE: func(_ *cobra.Command, args []string) error {
			schema := resource.Schema()
			if len(args) == 1 && args[0] == "test" {
				schema = resource.SchemaOfTests()
			}
			_, err := env.Stdout.Write(schema)
			return err
		},
	}
}
