package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type getOptions struct {
	connection
	output
	revision int64
}

func getCommand(env Env) *cobra.Command {
	var opt getOptions
	cmd := &cobra.Command{
		Use:   "get [KIND [NAME]]",
		Short: "Show what is stored",
		Long:  "Show what is stored: all objects, those of a kind, or one. Credentials are never shown.",
		Example: "  sluice get\n  sluice get targets\n" +
			"  sluice get target search -o yaml\n  sluice get target/mcp/search",
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: completeKinds,
		RunE:              func(cmd *cobra.Command, args []string) error { return get(cmd.Context(), env, opt, args) },
	}
	opt.connection.flags(cmd)
	opt.output.flag(cmd)
	cmd.Flags().Int64Var(&opt.revision, "revision", 0, "with a name: as of this revision")
	return cmd
}

func get(ctx context.Context, env Env, opt getOptions, args []string) error {
	args = parted(args)
	one := len(args) == 2
	if opt.revision != 0 && !one { // what is shown otherwise is the present
		return &codedError{Invalid, errors.New("sluice: --revision is for one object: say KIND and NAME")}
	}
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	var objects []*adminv1.Object
	speaks := map[string][]string{} // by target
	if one {
		object, err := client.Get(ctx, &adminv1.GetRequest{Tenant: opt.tenant, Kind: singular(args[0]), Name: args[1], Revision: opt.revision})
		if err != nil {
			return err
		}
		objects = append(objects, object)
	} else {
		kind := ""
		if len(args) == 1 {
			kind = singular(args[0])
		}
		resp, err := client.List(ctx, &adminv1.ListRequest{Tenant: opt.tenant, Kind: kind})
		if err != nil {
			return err
		}
		objects = resp.Objects
		for _, f := range resp.Found {
			speaks[f.Name] = f.ProtocolVersions
		}
	}
	if opt.format == "yaml" || one && opt.format == "table" {
		for i, o := range objects {
			if i > 0 {
				fmt.Fprintln(env.Stdout, "---")
			}
			if _, err := env.Stdout.Write(resource.Encode(o)); err != nil {
				return err
			}
		}
		return nil
	}
	values := make([]any, 0, len(objects))
	for _, o := range objects {
		v := objectValue(o)
		if versions := speaks[o.Name]; resource.Kind(o) == "target" && len(versions) > 0 {
			v["protocolVersions"] = versions
		}
		values = append(values, v)
	}
	var value any = values
	if one {
		value = values[0]
	}
	return opt.print(env.Stdout, value, func(w io.Writer) error {
		if len(args) == 1 && singular(args[0]) == "target" {
			return targetRows(w, objects, speaks)
		}
		return rows(w, "KIND NAME SET REVISION FROM", func(row func(...any)) {
			for _, o := range objects {
				row(strings.ToLower(resource.Kind(o)), o.Name, or(o.Set, "-"), o.Revision, or(place(o.Source), "-"))
			}
		})
	})
}

// targetRows tells of targets what they speak, too: as configured, or as proxies found out.
func targetRows(w io.Writer, objects []*adminv1.Object, found map[string][]string) error {
	return rows(w, "KIND NAME SPEAKS SET REVISION FROM", func(row func(...any)) {
		for _, o := range objects {
			versions := o.GetTarget().GetProtocolVersions()
			if len(versions) == 0 {
				versions = found[o.Name]
			}
			row(strings.ToLower(resource.Kind(o)), o.Name, or(strings.Join(versions, ","), "-"), or(o.Set, "-"), o.Revision, or(place(o.Source), "-"))
		}
	})
}

// objectValue is an object as its YAML shows it, under the name that `get` takes, with what the control plane knows of it.
func objectValue(o *adminv1.Object) map[string]any {
	v := map[string]any{
		"kind": resource.Kind(o), "name": o.Name, "set": o.Set, "revision": o.Revision, "source": place(o.Source),
	}
	if o.Updated != nil {
		v["updated"] = plainMessage(o.Updated.ProtoReflect())
	}
	m := o.ProtoReflect()
	if spec := m.WhichOneof(m.Descriptor().Oneofs().ByName("spec")); spec != nil {
		v["spec"] = resource.Show(m.Get(spec).Message().Interface())
	}
	return v
}

// completeKinds offers the kinds as the first argument.
func completeKinds(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return resource.Kinds(), cobra.ShellCompDirectiveNoFileComp
}

// parted takes apart KIND/NAME, as other commands print it.
func parted(args []string) []string {
	if len(args) == 1 {
		if kind, name, ok := strings.Cut(args[0], "/"); ok {
			return []string{kind, name}
		}
	}
	return args
}

// singular makes `targets` a `target`, as people type both.
func singular(kind string) string { return strings.TrimSuffix(strings.ToLower(kind), "s") }

func place(s *adminv1.Source) string {
	if s.GetFile() == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", s.File, s.GetPosition().GetLine())
}
