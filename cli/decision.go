package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sluicegate/sluice/cli/rehearsal"
	"github.com/sluicegate/sluice/controlplane"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

type decisionOptions struct {
	connection
	source
	output
	tool, prompt, resource, method, skill        string
	target                                       string
	arguments, annotations, claims, apiKey, user string
	route, host, path, peer, protocol, now       string
	headers                                      []string
}

func explainDecision(env Env) *cobra.Command {
	var opt decisionOptions
	cmd := &cobra.Command{
		Use:   "decision --tool NAME",
		Short: "Print what would become of a request, and the rule that decides",
		Long: "Print what would become of a request, the rule that decides, whether the item is listed, and all levels that take part.\n" +
			"It is answered here, by the code that proxies run; no target is asked, and nothing is fetched. With -f it reads files instead\n" +
			"of asking the control plane. Claims are those of a token as if verified: iss, aud and exp are filled in.",
		Example: "  sluice explain decision --tool search --target web --claims alice.json\n" +
			"  sluice explain decision -f sluice.yaml --tool files_delete --arguments '{\"path\": \"/tmp\"}'\n" +
			"  sluice explain decision --prompt greet --api-key-metadata '{\"id\": \"ci\"}' -o json",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := decide(cmd.Context(), env, opt)
			if err != nil {
				return err
			}
			return opt.print(env.Stdout, d.value(), func(w io.Writer) error { return d.print(w) })
		},
	}
	opt.connection.flags(cmd)
	opt.output.flag(cmd)
	f := cmd.Flags()
	f.VarP(&opt.files, "file", "f", "configuration to ask instead of the stored one")
	f.StringVar(&opt.tool, "tool", "", "tool that is called, as clients see it; with --target its own name")
	f.StringVar(&opt.prompt, "prompt", "", "prompt that is asked for")
	f.StringVar(&opt.resource, "resource", "", "URI of a resource that is read")
	f.StringVar(&opt.method, "method", "", "any other method, with --arguments as its params")
	f.StringVar(&opt.skill, "skill", "", "skill of an A2A agent, which is sent a message")
	f.StringVar(&opt.target, "target", "", "target that has the tool, prompt or resource, or is the agent")
	f.StringVar(&opt.arguments, "arguments", "", "arguments, a JSON object or @FILE")
	f.StringVar(&opt.annotations, "annotations", "", "what the target says of the tool, a JSON object or @FILE (default: nothing)")
	f.StringVar(&opt.claims, "claims", "", "file with the claims of the caller's token, JSON or YAML; - for standard input")
	f.StringVar(&opt.apiKey, "api-key-metadata", "", "metadata that tells the caller's API key, a JSON object or @FILE")
	f.StringVar(&opt.user, "user", "", "the caller's name by basicAuth")
	f.StringVar(&opt.peer, "source", "", "the caller's IP address")
	f.StringArrayVar(&opt.headers, "header", nil, "header of the request, `NAME: VALUE`; may be repeated")
	f.StringVar(&opt.route, "route", "", "route that the request goes to, if there are several")
	f.StringVar(&opt.host, "host", "", "host name of the request (default: the route's)")
	f.StringVar(&opt.path, "path", "", "path of the request (default: the route's, or /mcp)")
	f.StringVar(&opt.now, "now", "", "time of the request, as 2026-11-26T09:00:00Z (default: now)")
	f.StringVar(&opt.protocol, "protocol", "", "revision of MCP that the client speaks (default: the newest)")
	cmd.MarkFlagsOneRequired("tool", "prompt", "resource", "method", "skill")
	cmd.MarkFlagsMutuallyExclusive("tool", "prompt", "resource", "method", "skill")
	return cmd
}

// decision is what explain tells of one request.
type decision struct {
	request rehearsal.Request
	outcome *rehearsal.Outcome
	listed  *bool // nil: it is no item of a list
	levels  []*adminv1.PolicyExplanation
	notes   []string
}

func decide(ctx context.Context, env Env, opt decisionOptions) (*decision, error) {
	invalid := func(err error) error { return &codedError{Invalid, fmt.Errorf("sluice: %w", err)} }
	cfg, request, err := opt.question(env)
	if err != nil {
		return nil, invalid(err)
	}
	if err := opt.configuration(ctx, env, &cfg); err != nil {
		return nil, err
	}
	if opt.annotations != "" {
		if err := annotate(&cfg, &request, opt.annotations); err != nil {
			return nil, invalid(err)
		}
	}
	stage, err := rehearsal.New(ctx, cfg)
	if err != nil {
		return nil, invalid(err)
	}
	d := &decision{request: request, notes: stage.Notes()}
	if d.outcome, err = stage.Ask(ctx, request); err != nil {
		return nil, invalid(err)
	}
	if request.Kind != rehearsal.Method {
		names, err := stage.List(ctx, request.Kind, request.Target)
		listed := err == nil && slices.Contains(names, d.outcome.Name)
		d.listed = &listed
	}
	if target := d.outcome.Target; target != "" {
		d.levels = stage.Levels(target)
	} else if opt.target != "" {
		d.levels = stage.Levels(opt.target)
	}
	return d, nil
}

// question is what the flags ask, but for the configuration.
func (o *decisionOptions) question(env Env) (cfg rehearsal.Config, request rehearsal.Request, err error) {
	request = rehearsal.Request{Target: o.target}
	switch {
	case o.tool != "":
		request.Kind, request.Name = rehearsal.Tool, o.tool
	case o.prompt != "":
		request.Kind, request.Name = rehearsal.Prompt, o.prompt
	case o.resource != "":
		request.Kind, request.Name = rehearsal.Resource, o.resource
	case o.skill != "":
		request.Kind, request.Name = rehearsal.Skill, o.skill
	default:
		request.Kind, request.Name = rehearsal.Method, o.method
	}
	if request.Arguments, err = object("--arguments", o.arguments); err != nil {
		return cfg, request, err
	}
	cfg = rehearsal.Config{Header: http.Header{}, Protocol: o.protocol, Where: rehearsal.Where{Route: o.route, Host: o.host, Path: o.path}}
	cfg.Principal.User = o.user
	if cfg.Principal.APIKey, err = object("--api-key-metadata", o.apiKey); err != nil {
		return cfg, request, err
	}
	if cfg.Principal.Claims, err = readClaims(env, o.claims); err != nil {
		return cfg, request, err
	}
	if o.peer != "" {
		cfg.Source.Address = o.peer
		if host, port, err := net.SplitHostPort(o.peer); err == nil {
			number, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return cfg, request, fmt.Errorf("--source: %q is no port", port)
			}
			cfg.Source = rehearsal.Source{Address: host, Port: uint16(number)}
		}
	}
	for _, h := range o.headers {
		name, value, ok := strings.Cut(h, ":")
		if !ok || strings.TrimSpace(name) == "" {
			return cfg, request, fmt.Errorf("--header %q: want NAME: VALUE", h)
		}
		cfg.Header.Add(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	if o.now != "" {
		if cfg.At, err = time.Parse(time.RFC3339, o.now); err != nil {
			return cfg, request, fmt.Errorf("--now: %q is no time as 2026-11-26T09:00:00Z", o.now)
		}
	}
	return cfg, request, nil
}

// object reads a flag that holds a JSON object, or names a file with one. Nil for an empty flag.
func object(flag, text string) (map[string]any, error) {
	if text == "" {
		return nil, nil
	}
	text, err := valueOrFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	var m map[string]any
	if err := json.Unmarshal([]byte(text), &m); err != nil || m == nil {
		return nil, fmt.Errorf("%s: want a JSON object, as {\"name\": \"value\"}", flag)
	}
	return m, nil
}

func readClaims(env Env, file string) (map[string]any, error) {
	if file == "" {
		return nil, nil
	}
	var data []byte
	var err error
	if file == "-" {
		data, err = io.ReadAll(env.Stdin)
	} else {
		data, err = os.ReadFile(file)
	}
	if err != nil {
		return nil, fmt.Errorf("--claims: %w", err)
	}
	var m map[string]any
	if asJSON, err := yaml.YAMLToJSON(data); err != nil || json.Unmarshal(asJSON, &m) != nil || m == nil {
		return nil, fmt.Errorf("--claims: %s holds no JSON or YAML object", file)
	}
	return m, nil
}

// annotate gives the target a tool with annotations.
func annotate(cfg *rehearsal.Config, request *rehearsal.Request, text string) error {
	annotations, err := object("--annotations", text)
	if err != nil {
		return err
	}
	if request.Kind != rehearsal.Tool || request.Target == "" {
		return errors.New("--annotations are of a target's tool: say --tool and --target")
	}
	cfg.Targets = map[string]rehearsal.Target{request.Target: {Tools: []rehearsal.Item{{Name: request.Name, Annotations: annotations}}}}
	return nil
}

// configuration fills in the objects, from files or from what is stored.
func (o *decisionOptions) configuration(ctx context.Context, env Env, cfg *rehearsal.Config) error {
	if len(o.files) > 0 {
		set, err := o.load(env)
		if err != nil {
			return err
		}
		if diagnostics := controlplane.Validate(set.Objects, set.Single); resource.Failed(diagnostics) {
			printDiagnostics(env.Stderr, diagnostics)
			return &codedError{code: Invalid}
		}
		cfg.Objects = set.Objects
		return nil
	}
	client, closeConn, err := o.dial(env)
	if err != nil {
		return err
	}
	defer closeConn()
	stored, err := client.List(ctx, &adminv1.ListRequest{Tenant: o.tenant})
	if err != nil {
		return err
	}
	cfg.Tenant, cfg.Objects = o.tenant, stored.GetObjects()
	platform, err := client.List(ctx, &adminv1.ListRequest{Tenant: o.tenant, Kind: "platform"})
	switch {
	case err == nil:
		cfg.Objects = append(cfg.Objects, platform.GetObjects()...)
	case status.Code(err) != codes.PermissionDenied:
		return err
	default: // who sees one tenant alone sees what the platform sets for its targets
		above, err := platformOf(ctx, client, o.tenant, cfg.Objects)
		if err != nil {
			return err
		}
		cfg.Objects = append(cfg.Objects, above...)
	}
	return nil
}

// platformOf makes the platform's level of what explain tells about a tenant's targets: no object, if it sets nothing there.
func platformOf(ctx context.Context, client adminv1.AdminClient, tenant string, objects []*adminv1.Object) ([]*adminv1.Object, error) {
	blocks := map[string]map[string]any{"policies": {}, "enforced": {}}
	for _, o := range objects {
		if o.GetTarget() == nil {
			continue
		}
		e, err := client.Explain(ctx, &adminv1.ExplainRequest{Tenant: tenant, Target: o.GetName()})
		if err != nil {
			return nil, err
		}
		for _, r := range e.GetRoutes() {
			for _, p := range r.GetPolicies() {
				if p.GetFrom() == "platform" && p.GetEnforced() {
					blocks["enforced"][p.GetKind()] = p.GetValue().AsInterface()
				} else if p.GetFrom() == "platform" {
					blocks["policies"][p.GetKind()] = p.GetValue().AsInterface()
				}
			}
		}
	}
	maps.DeleteFunc(blocks, func(_ string, b map[string]any) bool { return len(b) == 0 })
	if len(blocks) == 0 {
		return nil, nil
	}
	data, err := json.Marshal(map[string]any{"kind": "platform", "spec": blocks})
	if err != nil {
		return nil, err
	}
	set, diagnostics := resource.Load([]resource.File{{Name: "platform", Data: []byte(strings.ReplaceAll(string(data), "$", "$$"))}}, nil)
	if resource.Failed(diagnostics) {
		return nil, fmt.Errorf("the platform's policies, as explain tells them: %s", resource.Format(diagnostics[0]))
	}
	for _, o := range set.Objects {
		o.Source = nil // it is in no file of the caller's
	}
	return set.Objects, nil
}

// value is {"allowed", "why", "status", "rule", "level", "place", "text", "listed", "route", "backend", "target", "name", "principal",
// "levels": [{"kind", "from", "place", "enforced", "notApplicable"}], "notes"}; what is not known is left out.
func (d *decision) value() any {
	out := d.outcome
	v := map[string]any{"allowed": out.Allowed, "status": out.Status, "route": out.Route, "backend": out.Backend, "target": out.Target, "name": out.Name, "principal": out.Principal}
	set := func(key, value string) {
		if value != "" {
			v[key] = value
		}
	}
	set("why", out.Why)
	set("rule", out.Decision.Rule)
	set("level", out.Decision.Level)
	set("place", out.Decision.Place)
	set("text", out.Decision.Text)
	if d.listed != nil {
		v["listed"] = *d.listed
	}
	levels := []any{}
	for _, p := range d.levels {
		l := map[string]any{"kind": p.GetKind(), "from": p.GetFrom(), "place": p.GetPlace(), "enforced": p.GetEnforced()}
		if p.GetNotApplicable() != "" {
			l["notApplicable"] = p.GetNotApplicable()
		}
		levels = append(levels, l)
	}
	v["levels"] = levels
	if len(d.notes) > 0 {
		v["notes"] = d.notes
	}
	return v
}

func (d *decision) print(w io.Writer) error {
	out := d.outcome
	what := map[rehearsal.Kind]string{rehearsal.Tool: "tool", rehearsal.Prompt: "prompt", rehearsal.Resource: "resource", rehearsal.Skill: "skill", rehearsal.Method: "method"}[d.request.Kind]
	fmt.Fprintf(w, "%s %s", what, out.Name)
	if out.Target != "" {
		fmt.Fprintf(w, " of target %s", out.Target)
	}
	fmt.Fprintf(w, ", asked for by %s through route %s\n\n", or(out.Principal, "anonymous"), or(out.Route, "-"))
	if out.Allowed {
		fmt.Fprintln(w, "verdict   allowed")
	} else {
		fmt.Fprintf(w, "verdict   refused, with status %d\n", out.Status)
	}
	switch {
	case out.Decision.Rule != "":
		fmt.Fprintf(w, "rule      %s%s\n", out.Decision.Rule, at(out.Decision.Place))
		if out.Decision.Text != "" {
			fmt.Fprintf(w, "          %s\n", strings.Join(strings.Fields(out.Decision.Text), " "))
		}
		if !out.Allowed && out.Status != http.StatusOK && out.Error != nil { // it says more than that there is no such thing
			fmt.Fprintf(w, "because   %s\n", out.Error.Message)
		}
	case out.Allowed:
		fmt.Fprintln(w, "rule      none: no policy decides about it")
	default:
		fmt.Fprintf(w, "because   %s\n", strings.TrimSpace(out.Why))
	}
	if d.listed != nil {
		fmt.Fprintf(w, "listed    %s\n", map[bool]string{true: "yes", false: "no"}[*d.listed])
	}
	if len(d.levels) > 0 {
		fmt.Fprintln(w, "\nwhat takes part")
	}
	for _, p := range d.levels {
		fmt.Fprintf(w, "  %s from %s%s%s\n", p.GetKind(), p.GetFrom(), at(p.GetPlace()), map[bool]string{true: "  (enforced)"}[p.GetEnforced()])
		if p.GetNotApplicable() != "" {
			fmt.Fprintf(w, "    no effect: %s\n", p.GetNotApplicable())
		}
	}
	for _, n := range d.notes {
		fmt.Fprintf(w, "note: %s\n", n)
	}
	return nil
}
