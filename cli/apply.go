package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

// defaultSet is the set of a file when none is named.
const defaultSet = "default"

type applyOptions struct {
	connection
	source
	set        string
	wait       string
	strict     bool
	timeout    time.Duration
	dryRun     bool
	ifRevision int64
	comment    string
}

func applyCommand(env Env) *cobra.Command {
	var opt applyOptions
	cmd := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Push a configuration",
		Long: "Push a configuration as one revision. A long- or short-form file is the whole content of its set: what is\n" +
			"missing from it is removed. Single documents (kind, name, spec) are added or replaced, never removed.\n\n" +
			"Exit: 0 done, 2 invalid, 3 conflict, 4 refused by a proxy, 5 timed out.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return apply(cmd.Context(), env, opt) },
	}
	opt.connection.flags(cmd)
	opt.source.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&opt.set, "set", defaultSet, "set that the files are the whole content of")
	waitFlag(cmd, &opt.wait, &opt.timeout)
	f.BoolVar(&opt.strict, "strict", false, "with --wait: fail if a known proxy is disconnected")
	f.BoolVar(&opt.dryRun, "dry-run", false, "check and show the changes, store nothing")
	f.Int64Var(&opt.ifRevision, "if-revision", 0, "only if the tenant's head is this revision")
	f.StringVar(&opt.comment, "comment", "", "why, for the log")
	return cmd
}

func waitFlag(cmd *cobra.Command, wait *string, timeout *time.Duration) {
	cmd.Flags().StringVar(wait, "wait", "", "return when the connected proxies serve the revision: `all`, or a share such as 95%")
	cmd.Flags().Lookup("wait").NoOptDefVal = "all"
	cmd.Flags().DurationVar(timeout, "timeout", time.Minute, "how long --wait waits")
}

func apply(ctx context.Context, env Env, opt applyOptions) error {
	percent, err := parseWait(opt.wait)
	if err != nil {
		return err
	}
	set, err := opt.load(env)
	if err != nil {
		return err
	}
	client, closeConn, err := opt.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	resp, err := client.Apply(ctx, &adminv1.ApplyRequest{
		Tenant: opt.tenant, Set: opt.set, Single: set.Single, Objects: set.Objects,
		IfRevision: opt.ifRevision, DryRun: opt.dryRun, Comment: opt.comment,
	})
	if err != nil {
		return refusal(env, err)
	}
	printDiagnostics(env.Stderr, resp.Diagnostics)
	printChanges(env.Stdout, resp.Changes)
	switch {
	case opt.dryRun:
		fmt.Fprintf(env.Stdout, "dry run: %s; nothing stored\n", count(len(resp.Changes), "change"))
		return nil
	case len(resp.Changes) == 0:
		fmt.Fprintf(env.Stdout, "no changes; revision %d\n", resp.Revision)
	default:
		fmt.Fprintf(env.Stdout, "revision %d: %s\n", resp.Revision, count(len(resp.Changes), "change"))
	}
	if opt.wait == "" {
		return nil
	}
	return wait(ctx, env, client, waitFor{
		tenant: opt.tenant, revision: resp.Revision, expected: resp.Connected, disconnected: resp.Disconnected,
		percent: percent, strict: opt.strict, timeout: opt.timeout,
	})
}

// parseWait returns the share of proxies, in percent.
func parseWait(s string) (uint32, error) {
	if s == "" || s == "all" {
		return 100, nil
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "%"), 10, 32)
	if err != nil || n < 1 || n > 100 {
		return 0, &codedError{Invalid, fmt.Errorf("sluice: --wait=%s: want `all` or a share from 1%% to 100%%", s)}
	}
	return uint32(n), nil
}

type waitFor struct {
	tenant       string
	revision     int64
	expected     []string // connected when the revision was committed
	disconnected []string
	percent      uint32
	strict       bool
	timeout      time.Duration
}

// wait follows the revision until the wished share of proxies serves it, one refuses it, or time is up.
func wait(ctx context.Context, env Env, client adminv1.AdminClient, w waitFor) error {
	if len(w.disconnected) > 0 {
		fmt.Fprintf(env.Stderr, "not connected, will follow when back: %s\n", list(w.disconnected))
		if w.strict {
			return &codedError{TimedOut, fmt.Errorf("sluice: revision %d is stored, but %s not connected (--strict)", w.revision, count(len(w.disconnected), "proxy"))}
		}
	}
	if len(w.expected) == 0 {
		fmt.Fprintf(env.Stdout, "no proxy is connected; revision %d waits for the first\n", w.revision)
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	stream, err := client.Status(ctx, &adminv1.StatusRequest{
		Tenant: w.tenant, Revision: w.revision, Wait: true, Percent: w.percent, Expected: w.expected,
	})
	if err != nil {
		return err
	}
	var last *adminv1.StatusResponse
	for {
		resp, err := stream.Recv()
		switch {
		case err == nil:
			last = resp
			if resp.Done {
				return outcome(env, w, last)
			}
		case status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded):
			return timedOut(w, last)
		case ctx.Err() != nil:
			return fmt.Errorf("stopped waiting; revision %d is stored, and `sluice status` tells how far it is", w.revision)
		case errors.Is(err, io.EOF):
			return fmt.Errorf("the control plane ended the status of revision %d early", w.revision)
		default:
			return err
		}
	}
}

// outcome tells what the last status says. A refusal fails the wait unless a smaller share was asked for and is reached.
func outcome(env Env, w waitFor, s *adminv1.StatusResponse) error {
	for _, r := range s.Refused {
		fmt.Fprintf(env.Stderr, "%s refused %s\n", r.Proxy, refusalText(r))
	}
	reached := w.percent < 100 && int(s.Serving)*100 >= int(w.percent)*int(s.Total)
	if len(s.Refused) > 0 && !reached {
		return &codedError{Refused, fmt.Errorf("sluice: revision %d: %d of %d proxies serve it whole; what was refused keeps its last good form", s.Revision, s.Serving, s.Total)}
	}
	if len(s.Disconnected) > 0 {
		fmt.Fprintf(env.Stderr, "not connected: %s\n", list(s.Disconnected))
		if w.strict {
			return &codedError{TimedOut, fmt.Errorf("sluice: revision %d: %d of %d proxies serve it, and the others went away (--strict)", s.Revision, s.Serving, s.Total)}
		}
	}
	fmt.Fprintf(env.Stdout, "revision %d: %d of %d proxies serve it\n", s.Revision, s.Serving, s.Total)
	return nil
}

// refusalText is `OBJECT: FIELD: REASON`.
func refusalText(r *adminv1.ProxyRefusal) string {
	if r.Field == "" {
		return r.Object + ": " + r.Reason
	}
	return r.Object + ": " + r.Field + ": " + r.Reason
}

func timedOut(w waitFor, last *adminv1.StatusResponse) error {
	if last == nil {
		return &codedError{TimedOut, fmt.Errorf("sluice: revision %d: no answer within %s", w.revision, w.timeout)}
	}
	return &codedError{TimedOut, fmt.Errorf("sluice: revision %d: %d of %d proxies serve it after %s; waiting for: %s", w.revision, last.Serving, last.Total, w.timeout, list(append(last.Lagging, last.Disconnected...)))}
}

func printChanges(w io.Writer, changes []*adminv1.Change) {
	signs := map[adminv1.Change_Op]string{adminv1.Change_OP_CREATE: "+", adminv1.Change_OP_UPDATE: "~", adminv1.Change_OP_DELETE: "-"}
	for _, c := range changes {
		renamed := ""
		if c.RenamedFrom != "" {
			renamed = " (was " + c.RenamedFrom + ")"
		}
		fmt.Fprintf(w, "%s %s/%s%s\n", signs[c.Op], strings.ToLower(c.Kind), c.Name, renamed)
		if c.Op != adminv1.Change_OP_UPDATE {
			continue
		}
		for _, f := range c.Fields {
			fmt.Fprintf(w, "    %s: %s -> %s\n", f.Path, or(f.Before, "(unset)"), or(f.After, "(unset)"))
		}
	}
}

func count(n int, what string) string {
	switch {
	case n == 1:
		return "1 " + what
	case strings.HasSuffix(what, "y"):
		return fmt.Sprintf("%d %sies", n, strings.TrimSuffix(what, "y"))
	}
	return fmt.Sprintf("%d %ss", n, what)
}
