package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const defaultAdmin = "http://127.0.0.1:7070"

// connection is how a command reaches the control plane: flags that every such command has.
type connection struct {
	admin, token, ca, tenant string
}

func (c *connection) flags(cmd *cobra.Command) {
	c.platformFlags(cmd)
	cmd.Flags().StringVar(&c.tenant, "tenant", "", "`NAME` of the tenant to act for (default: the token's own, or default)")
}

// platformFlags are those of commands that act for no tenant.
func (c *connection) platformFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.admin, "admin", "", "URL of the control plane's admin port (default: $SLUICE_ADMIN, or "+defaultAdmin+")")
	cmd.Flags().StringVar(&c.token, "token", "", "admin token, or @FILE (default: $SLUICE_TOKEN, or admin.token in the default data directory)")
	cmd.Flags().StringVar(&c.ca, "ca", "", "PEM file of the control plane's CA, for an https URL (default: $SLUICE_CA, or ca.pem in the default data directory)")
}

// dial returns a client of the admin API and what closes it.
func (c *connection) dial(env Env) (adminv1.AdminClient, func(), error) {
	address := or(c.admin, env.get("SLUICE_ADMIN"), defaultAdmin)
	if !strings.Contains(address, "://") {
		address = "http://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" {
		return nil, nil, &codedError{Invalid, fmt.Errorf("sluice: admin URL %q: want http://HOST:PORT or https://HOST:PORT", address)}
	}
	token, err := c.readToken(env)
	if err != nil {
		return nil, nil, err
	}
	var creds credentials.TransportCredentials
	switch u.Scheme {
	case "http":
		if !loopback(u.Hostname()) {
			return nil, nil, &codedError{Invalid, fmt.Errorf("sluice: admin URL %q would send the token in clear; use https", address)}
		}
		creds = insecure.NewCredentials()
	case "https":
		if creds, err = c.tls(env); err != nil {
			return nil, nil, err
		}
	default:
		return nil, nil, &codedError{Invalid, fmt.Errorf("sluice: admin URL %q: scheme must be http or https", address)}
	}
	bearer := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)
	}
	conn, err := grpc.NewClient("passthrough:///"+u.Host,
		grpc.WithTransportCredentials(creds),
		// A control plane whose machine or network went away says nothing: a script must not wait for it for ever.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(bearer(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(bearer(ctx), desc, cc, method, opts...)
		}))
	if err != nil {
		return nil, nil, err
	}
	return adminv1.NewAdminClient(conn), func() { conn.Close() }, nil
}

// A configuration of ten thousand targets is some 10 MB.
const maxMessage = 256 << 20

// run makes a command of a call to the admin API: it dials, calls do and hangs up. What needs no control plane, such as
// checking flags, is to be done before.
func (c *connection) run(env Env, do func(ctx context.Context, client adminv1.AdminClient, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		client, closeConn, err := c.dial(env)
		if err != nil {
			return err
		}
		defer closeConn()
		return do(cmd.Context(), client, args)
	}
}

func (c *connection) readToken(env Env) (string, error) {
	token := or(c.token, env.get("SLUICE_TOKEN"))
	if token == "" {
		file := filepath.Join(defaultDataDir(env), "admin.token")
		if data, err := os.ReadFile(file); err == nil {
			return strings.TrimSpace(string(data)), nil
		}
		return "", &codedError{Invalid, fmt.Errorf("sluice: no admin token; pass --token or SLUICE_TOKEN (the first one lies in admin.token in the control plane's data directory)")}
	}
	value, err := valueOrFile(token)
	if err != nil {
		return "", &codedError{Invalid, fmt.Errorf("sluice: admin token: %w", err)}
	}
	return value, nil
}

func (c *connection) tls(env Env) (credentials.TransportCredentials, error) {
	file := or(c.ca, env.get("SLUICE_CA"))
	if file == "" {
		file = filepath.Join(defaultDataDir(env), "ca.pem")
		if _, err := os.Stat(file); err != nil {
			return credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), nil // a public certificate, then
		}
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, &codedError{Invalid, fmt.Errorf("sluice: CA of the admin port: %w", err)}
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, &codedError{Invalid, fmt.Errorf("sluice: CA of the admin port: %s holds no PEM certificate", file)}
	}
	return credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}), nil
}

func (e Env) get(name string) string {
	v, _ := e.Getenv(name)
	return v
}

// defaultDataDir is where `sluice up` keeps its state unless told otherwise.
func defaultDataDir(env Env) string {
	if dir := env.get("SLUICE_DATA_DIR"); dir != "" {
		return dir
	}
	if dir := env.get("XDG_DATA_HOME"); dir != "" {
		return filepath.Join(dir, "sluice")
	}
	return filepath.Join(env.get("HOME"), ".local", "share", "sluice")
}

// valueOrFile reads @FILE, as curl does.
func valueOrFile(s string) (string, error) {
	file, ok := strings.CutPrefix(s, "@")
	if !ok {
		return s, nil
	}
	data, err := os.ReadFile(file)
	return strings.TrimSpace(string(data)), err
}

func loopback(host string) bool {
	addr, err := netip.ParseAddr(host) // a name such as 127.example.com may be anybody's
	return host == "localhost" || err == nil && addr.IsLoopback()
}

// or returns the first that is not empty.
func or(values ...string) string {
	for _, v := range values {
		if v != "" {
			return v
		}
	}
	return ""
}
