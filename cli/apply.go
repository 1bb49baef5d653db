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
	outcome
	set        string
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
	opt.outcome.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&opt.set, "set", defaultSet, "set that the files are the whole content of")
	f.BoolVar(&opt.dryRun, "dry-run", false, "check and show the changes, store nothing")
	f.Int64Var(&opt.ifRevision, "if-revision", 0, "only if the tenant's head is this revision")
	f.StringVar(&opt.comment, "comment", "", "why, for the log")
	return cmd
}

func apply(ctx context.Context, env Env, opt applyOptions) error {
	if err := opt.check(); err != nil {
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
	summary := fmt.Sprintf("revision %d: %s", resp.Revision, count(len(resp.Changes), "change"))
	switch {
	case opt.dryRun:
		summary = fmt.Sprintf("dry run: %s; nothing stored", count(len(resp.Changes), "change"))
		opt.wait = ""
	case len(resp.Changes) == 0:
		summary = fmt.Sprintf("no changes; revision %d", resp.Revision)
	}
	return opt.tell(ctx, env, client, opt.tenant, resp, summary)
}

// outcome is what commands that make a revision have in common: how it is told, and whether they wait for the proxies.
type outcome struct {
	output
	wait    string
	percent uint32 // of wait
	strict  bool
	timeout time.Duration
}

func (o *outcome) flags(cmd *cobra.Command) {
	o.output.flag(cmd)
	f := cmd.Flags()
	f.StringVar(&o.wait, "wait", "", "return when the connected proxies serve the revision: all, or a `SHARE` such as 95%")
	f.Lookup("wait").NoOptDefVal = "all"
	f.DurationVar(&o.timeout, "timeout", time.Minute, "how long --wait waits")
	f.BoolVar(&o.strict, "strict", false, "with --wait: fail if a known proxy is disconnected")
}

// check is for before anything is done.
func (o *outcome) check() (err error) {
	o.percent, err = parseWait(o.wait)
	return err
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

// tell prints what was done, waits if that was asked for, and prints what came of it. JSON and YAML are the admin API's
// answer, with the last status of the wait in `status`.
func (o *outcome) tell(ctx context.Context, env Env, client adminv1.AdminClient, tenant string, resp *adminv1.ApplyResponse, summary string) error {
	printDiagnostics(env.Stderr, resp.Diagnostics)
	table := env.Stdout
	if o.format != "table" {
		table = io.Discard
	}
	printChanges(table, resp.Changes)
	fmt.Fprintln(table, summary)
	var last *adminv1.StatusResponse
	var failed error
	if o.wait != "" {
		last, failed = o.await(ctx, env, table, client, tenant, resp)
	}
	if o.format == "table" {
		return failed
	}
	value := plainOne(resp)
	if last != nil {
		value["status"] = plainOne(last)
	}
	return errors.Join(o.print(env.Stdout, value, nil), failed)
}

// await follows the revision until the wished share of proxies serves it, one refuses it, or time is up.
func (o *outcome) await(ctx context.Context, env Env, table io.Writer, client adminv1.AdminClient, tenant string, resp *adminv1.ApplyResponse) (last *adminv1.StatusResponse, err error) {
	revision := resp.Revision
	if len(resp.Disconnected) > 0 {
		fmt.Fprintf(env.Stderr, "not connected, will follow when back: %s\n", list(resp.Disconnected))
		if o.strict {
			return nil, &codedError{TimedOut, fmt.Errorf("sluice: revision %d is stored, but %s not connected (--strict)", revision, count(len(resp.Disconnected), "proxy"))}
		}
	}
	if len(resp.Connected) == 0 {
		fmt.Fprintf(table, "no proxy is connected; revision %d waits for the first\n", revision)
		return nil, nil
	}
	waiting, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	stream, err := client.Status(waiting, &adminv1.StatusRequest{
		Tenant: tenant, Revision: revision, Wait: true, Percent: o.percent, Expected: resp.Connected,
	})
	if err != nil {
		return nil, err
	}
	for {
		next, err := stream.Recv()
		switch {
		case err == nil:
			if last = next; last.Done {
				return last, o.judge(env, table, last)
			}
		case ctx.Err() != nil:
			return last, fmt.Errorf("stopped waiting; revision %d is stored, and `sluice status` tells how far it is", revision)
		case status.Code(err) == codes.DeadlineExceeded, waiting.Err() != nil:
			return last, o.timedOut(revision, last)
		case errors.Is(err, io.EOF):
			return last, fmt.Errorf("the control plane ended the status of revision %d early", revision)
		default:
			return last, err
		}
	}
}

// judge tells what the last status says. A refusal fails the wait unless a smaller share was asked for and is reached.
func (o *outcome) judge(env Env, table io.Writer, s *adminv1.StatusResponse) error {
	for _, r := range s.Refused {
		fmt.Fprintf(env.Stderr, "%s refused %s\n", r.Proxy, refusalText(r))
	}
	reached := o.percent < 100 && int(s.Serving)*100 >= int(o.percent)*int(s.Total)
	if len(s.Refused) > 0 && !reached {
		return &codedError{Refused, fmt.Errorf("sluice: revision %d: %d of %d proxies serve it whole; what was refused keeps its last good form", s.Revision, s.Serving, s.Total)}
	}
	if len(s.Disconnected) > 0 {
		fmt.Fprintf(env.Stderr, "not connected: %s\n", list(s.Disconnected))
		if o.strict {
			return &codedError{TimedOut, fmt.Errorf("sluice: revision %d: %d of %d proxies serve it, and the others went away (--strict)", s.Revision, s.Serving, s.Total)}
		}
	}
	fmt.Fprintf(table, "revision %d: %d of %d proxies serve it\n", s.Revision, s.Serving, s.Total)
	return nil
}

// refusalText is `OBJECT: FIELD: REASON`.
func refusalText(r *adminv1.ProxyRefusal) string {
	if r.Field == "" {
		return told(r.Object + ": " + r.Reason)
	}
	return told(r.Object + ": " + r.Field + ": " + r.Reason)
}

func (o *outcome) timedOut(revision int64, last *adminv1.StatusResponse) error {
	if last == nil {
		return &codedError{TimedOut, fmt.Errorf("sluice: revision %d is stored, but nothing is known of the proxies after %s", revision, o.timeout)}
	}
	return &codedError{TimedOut, fmt.Errorf("sluice: revision %d: %d of %d proxies serve it after %s; waiting for: %s", revision, last.Serving, last.Total, o.timeout, list(last.Lagging))}
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
