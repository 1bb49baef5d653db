package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

func tokenCommand(env Env) *cobra.Command {
	cmd := &cobra.Command{Use: "token", Short: "Make tokens for admins and proxies", Args: cobra.NoArgs, RunE: usage}
	cmd.AddCommand(tokenCreate(env), tokenList(env), tokenRevoke(env), tokenCert(env))
	return cmd
}

func tokenCreate(env Env) *cobra.Command {
	var conn connection
	var kind string
	var ttl time.Duration
	var out string
	req := &adminv1.CreateTokenRequest{}
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make a token and print it, once",
		Example: "  sluice token create --type join --group edge-eu --uses 3 --ttl 1h\n" +
			"  sluice token create --tenant acme --role tenant-admin",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch kind {
			case "join":
				req.Type = adminv1.CreateTokenRequest_TYPE_JOIN
			case "admin":
				req.Type = adminv1.CreateTokenRequest_TYPE_ADMIN
			default:
				return &codedError{Invalid, fmt.Errorf("sluice: --type %s: want admin or join", kind)}
			}
			if ttl != 0 {
				req.Ttl = durationpb.New(ttl)
			}
			client, closeConn, err := conn.dial(env)
			if err != nil {
				return err
			}
			defer closeConn()
			resp, err := client.CreateToken(cmd.Context(), req)
			if err != nil {
				return refusal(env, err)
			}
			if out != "" { // for images without a shell
				return os.WriteFile(out, []byte(resp.Token+"\n"), 0o600)
			}
			fmt.Fprintln(env.Stdout, resp.Token)
			return nil
		},
	}
	conn.platformFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&kind, "type", "admin", "admin, or join for proxies")
	f.StringVar(&req.Group, "group", "", "join: `NAME` of the proxies' group (default: default)")
	f.Uint32Var(&req.Uses, "uses", 1, "join: how often it may be used")
	f.DurationVar(&ttl, "ttl", 0, "how long it is good (default: join 1h, admin for ever)")
	f.StringVar(&req.Role, "role", "", "admin: platform-admin, tenant-admin or tenant-viewer")
	f.StringVar(&req.Tenant, "tenant", "", "admin: the tenant of a tenant role")
	f.StringVar(&req.Name, "name", "", "what the log shows as actor")
	f.StringVar(&out, "out", "", "file to write the token to, instead of stdout")
	return cmd
}

func tokenList(env Env) *cobra.Command {
	var conn connection
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tokens, without their values",
		Args:  cobra.NoArgs,
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, _ []string) error {
			resp, err := client.ListTokens(ctx, &adminv1.ListTokensRequest{})
			if err != nil {
				return err
			}
			return out.print(env.Stdout, plain(resp.Tokens), func(w io.Writer) error {
				return rows(w, "ID NAME ROLE TENANT GROUP USES EXPIRES", func(row func(...any)) {
					for _, t := range resp.Tokens {
						role, uses, expires := or(t.Role, "join"), "-", "never"
						if t.Type == adminv1.CreateTokenRequest_TYPE_JOIN {
							uses = fmt.Sprint(t.UsesLeft)
						}
						if t.Expires != nil {
							expires = t.Expires.AsTime().Local().Format(time.DateTime)
						}
						row(t.Id, t.Name, role, or(t.Tenant, "-"), or(t.Group, "-"), uses, expires)
					}
				})
			})
		}),
	}
	conn.platformFlags(cmd)
	out.flag(cmd)
	return cmd
}

func tokenRevoke(env Env) *cobra.Command {
	var conn connection
	cmd := &cobra.Command{
		Use:   "revoke ID",
		Short: "Make a token worthless",
		Args:  cobra.ExactArgs(1),
		RunE: conn.run(env, func(ctx context.Context, client adminv1.AdminClient, args []string) error {
			_, err := client.RevokeToken(ctx, &adminv1.RevokeTokenRequest{Id: args[0]})
			return err
		}),
	}
	conn.platformFlags(cmd)
	return cmd
}

func tokenCert(env Env) *cobra.Command {
	var conn connection
	var dir string
	var ttl time.Duration
	req := &adminv1.IssueCertificatesRequest{}
	cmd := &cobra.Command{
		Use:   "cert --out DIR",
		Short: "Make client certificates for xDS clients that are not Sluice proxies",
		Long: "Make client certificates for xDS clients that are not Sluice proxies: DIR/ca.pem and, for each\n" +
			"from 0, DIR/proxy-N.pem and DIR/proxy-N.key. Prints the names that status shows.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if ttl != 0 {
				req.Ttl = durationpb.New(ttl)
			}
			client, closeConn, err := conn.dial(env)
			if err != nil {
				return err
			}
			defer closeConn()
			resp, err := client.IssueCertificates(cmd.Context(), req)
			if err != nil {
				return refusal(env, err)
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(dir, "ca.pem"), []byte(resp.Root), 0o644); err != nil {
				return err
			}
			for i, c := range resp.Certificates {
				file := filepath.Join(dir, fmt.Sprintf("proxy-%d", i)) // numbered, so that a fleet of test clients can count
				if err := os.WriteFile(file+".pem", []byte(c.Certificate), 0o644); err != nil {
					return err
				}
				if err := os.WriteFile(file+".key", []byte(c.Key), 0o600); err != nil {
					return err
				}
				fmt.Fprintln(env.Stdout, c.Name)
			}
			return nil
		},
	}
	conn.platformFlags(cmd)
	cmd.Flags().StringVar(&req.Group, "group", "default", "the clients' group")
	cmd.Flags().Uint32Var(&req.Count, "count", 1, "how many")
	cmd.Flags().StringVar(&dir, "out", "", "folder to write to")
	cmd.Flags().DurationVar(&ttl, "ttl", 0, "how long they are good (default 168h)")
	_ = cmd.MarkFlagRequired("out")
	return cmd
}
