package policytest

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluicegate/sluice/cli/rehearsal"
	"github.com/sluicegate/sluice/internal/resource"
	testv1 "github.com/sluicegate/sluice/proto/gen/sluice/test/v1"
)

// run is one test while it runs.
type run struct {
	suite  *Suite
	test   *testv1.Test
	at     string // path of the test in its file
	result Result
}

func (r *run) fail(field, want, got string) {
	r.result.Failures = append(r.result.Failures, Failure{Place: resource.Place(r.suite.places, r.at+".expect."+field), What: field, Want: want, Got: got})
}

// cannot says why the test could not be run.
func (r *run) cannot(err error) {
	r.result.Failures = append(r.result.Failures, Failure{Place: r.result.Place, Got: err.Error()})
}

func (r *run) run(ctx context.Context) {
	cfg, err := r.config()
	if err != nil {
		r.cannot(err)
		return
	}
	stage, err := rehearsal.New(ctx, cfg)
	if err != nil {
		r.cannot(err)
		return
	}
	r.result.Notes = stage.Notes()
	for _, names := range r.names() {
		for kind, list := range byKind(names) {
			for _, name := range list {
				stage.Assume(kind, name)
			}
		}
	}
	if err := r.lists(ctx, stage); err != nil {
		r.cannot(err)
		return
	}
	if r.test.GetRequest() == nil {
		return
	}
	var out *rehearsal.Outcome
	for range max(1, r.test.GetRequest().GetRepeat()) {
		if out, err = stage.Ask(ctx, request(r.test.GetRequest())); err != nil {
			r.cannot(err)
			return
		}
	}
	r.result.Decision = out.Decision
	r.outcome(out)
}

func (r *run) config() (rehearsal.Config, error) {
	t := r.test
	cfg := rehearsal.Config{
		Objects: r.suite.objects, Targets: map[string]rehearsal.Target{}, Header: http.Header{}, Protocol: t.GetProtocol(),
		Where:  rehearsal.Where{Route: t.GetRoute(), Host: t.GetHost(), Path: t.GetPath(), Port: uint16(t.GetPort())},
		Source: rehearsal.Source{Address: t.GetSource().GetAddress(), Port: uint16(t.GetSource().GetPort()), Certificate: certificate(t.GetSource().GetCertificate())},
	}
	for name, target := range r.suite.tests.GetTargets() {
		cfg.Targets[name] = targetOf(target)
	}
	for name, value := range t.GetHeaders() {
		cfg.Header.Set(name, value)
	}
	if p := t.GetPrincipal(); p != nil {
		cfg.Principal.User = p.GetBasic()
		if p.GetJwt() != nil {
			cfg.Principal.Claims = p.GetJwt().AsMap()
		}
		if p.GetApiKey() != nil {
			cfg.Principal.APIKey = p.GetApiKey().AsMap()
		}
	}
	if t.GetNow() != "" {
		now, err := time.Parse(time.RFC3339, t.GetNow())
		if err != nil {
			return cfg, fmt.Errorf("now: %q is no time of RFC 3339, e.g. 2026-11-26T09:00:00Z", t.GetNow())
		}
		cfg.At = now
	}
	return cfg, nil
}

func targetOf(t *testv1.Target) rehearsal.Target {
	var out rehearsal.Target
	for _, tool := range t.GetTools() {
		out.Tools = append(out.Tools, rehearsal.Item{Name: tool.GetName(), Annotations: asMap(tool.GetAnnotations()),
			InputSchema: asMap(tool.GetInputSchema()), Text: tool.GetText(), Result: asMap(tool.GetResult())})
	}
	for _, p := range t.GetPrompts() {
		out.Prompts = append(out.Prompts, rehearsal.Item{Name: p.GetName(), Text: p.GetText(), Result: asMap(p.GetResult())})
	}
	for _, p := range t.GetResources() {
		out.Resources = append(out.Resources, rehearsal.Item{Name: p.GetUri(), Text: p.GetText(), Result: asMap(p.GetResult())})
	}
	for _, p := range t.GetSkills() {
		out.Skills = append(out.Skills, rehearsal.Item{Name: p.GetId(), Text: p.GetText()})
	}
	for _, p := range t.GetTemplates() {
		out.Templates = append(out.Templates, rehearsal.Item{Name: p.GetUriTemplate()})
	}
	return out
}

// asMap is nil for what is not there.
func asMap(s *structpb.Struct) map[string]any {
	if s == nil {
		return nil
	}
	return s.AsMap()
}

func certificate(c *testv1.Certificate) *x509.Certificate {
	if c == nil {
		return nil
	}
	out := &x509.Certificate{Subject: pkix.Name{CommonName: c.GetCommonName()}}
	if c.GetOrganization() != "" {
		out.Subject.Organization = []string{c.GetOrganization()}
	}
	for _, name := range c.GetSubjectAltNames() {
		u, err := url.Parse(name)
		switch ip := net.ParseIP(name); {
		case ip != nil:
			out.IPAddresses = append(out.IPAddresses, ip)
		case err == nil && u.Scheme != "" && u.Host != "":
			out.URIs = append(out.URIs, u)
		case strings.Contains(name, "@"):
			out.EmailAddresses = append(out.EmailAddresses, name)
		default:
			out.DNSNames = append(out.DNSNames, name)
		}
	}
	return out
}

func request(r *testv1.Request) rehearsal.Request {
	out := rehearsal.Request{Target: r.GetTarget(), Arguments: asMap(r.GetArguments())}
	switch item := r.GetItem().(type) {
	case *testv1.Request_Tool:
		out.Kind, out.Name = rehearsal.Tool, item.Tool
	case *testv1.Request_Prompt:
		out.Kind, out.Name = rehearsal.Prompt, item.Prompt
	case *testv1.Request_Resource:
		out.Kind, out.Name = rehearsal.Resource, item.Resource
	case *testv1.Request_Template:
		out.Kind, out.Name = rehearsal.Template, item.Template
	case *testv1.Request_Skill:
		out.Kind, out.Name, out.Text = rehearsal.Skill, item.Skill, r.GetText()
	case *testv1.Request_Method:
		out.Kind, out.Name, out.Arguments = rehearsal.Method, item.Method, asMap(r.GetParams())
	}
	return out
}

// names are those that the test's lists are about.
func (r *run) names() []*testv1.Names {
	e := r.test.GetExpect()
	return []*testv1.Names{e.GetListed(), e.GetNotListed(), e.GetList()}
}

func byKind(n *testv1.Names) map[rehearsal.Kind][]string {
	return map[rehearsal.Kind][]string{rehearsal.Tool: n.GetTools(), rehearsal.Prompt: n.GetPrompts(), rehearsal.Resource: n.GetResources(), rehearsal.Template: n.GetTemplates(),
		rehearsal.Skill: n.GetSkills()}
}

func (r *run) lists(ctx context.Context, stage *rehearsal.Stage) error {
	e := r.test.GetExpect()
	for _, kind := range rehearsal.Kinds {
		listed, not, exactly := byKind(e.GetListed())[kind], byKind(e.GetNotListed())[kind], byKind(e.GetList())[kind]
		nothing := e.GetList().GetNothing() || e.GetListed().GetNothing()
		if len(listed)+len(not)+len(exactly) == 0 && (!nothing || !stage.Has(kind)) {
			continue
		}
		got, err := stage.List(ctx, kind, r.test.GetRequest().GetTarget())
		if err != nil {
			return err
		}
		for _, name := range listed {
			if !slices.Contains(got, name) {
				r.fail("listed", name, show(got))
			}
		}
		for _, name := range not {
			if slices.Contains(got, name) {
				r.fail("notListed", "no "+name, show(got))
			}
		}
		if want := slices.Sorted(slices.Values(exactly)); (len(want) > 0 || nothing) && !slices.Equal(want, slices.Sorted(slices.Values(got))) {
			r.fail("list", show(want), show(got))
		}
	}
	return nil
}

// show is JSON for people: < stays <.
func show(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
