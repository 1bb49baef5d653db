package policytest

import (
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/sluicegate/sluice/cli/rehearsal"
	testv1 "github.com/sluicegate/sluice/proto/gen/sluice/test/v1"
)

// outcome compares what became of the request with what is expected.
func (r *run) outcome(out *rehearsal.Outcome) {
	e := r.test.GetExpect()
	if e.Allowed != nil && e.GetAllowed() != out.Allowed {
		r.fail("allowed", strconv.FormatBool(e.GetAllowed()), verdict(out))
	}
	if e.GetRefused() != nil {
		r.refused(e.GetRefused(), out)
	}
	if e.GetSent() != nil {
		r.sent(e.GetSent(), out)
	}
	if e.GetReceived() != nil {
		r.received(e.GetReceived(), out)
	}
}

func verdict(out *rehearsal.Outcome) string {
	if out.Allowed {
		return "allowed"
	}
	return fmt.Sprintf("refused with status %d: %s", out.Status, out.Why)
}

func (r *run) refused(want *testv1.Refusal, out *rehearsal.Outcome) {
	if out.Allowed {
		r.fail("refused", "refused", verdict(out))
		return
	}
	if want.GetStatus() != 0 && int(want.GetStatus()) != out.Status {
		r.fail("refused.status", fmt.Sprint(want.GetStatus()), fmt.Sprint(out.Status))
	}
	reasons := []string{out.Why, out.Rule, out.Decision.Place, out.Decision.Text, string(out.Body)}
	if out.Error != nil {
		reasons = append(reasons, out.Error.Message)
	}
	if out.Err != nil {
		reasons = append(reasons, out.Err.Error())
	}
	if !slices.ContainsFunc(reasons, func(s string) bool { return strings.Contains(s, want.GetBecause()) }) {
		r.fail("refused.because", want.GetBecause(), verdict(out))
	}
}

func (r *run) sent(want *testv1.Sent, out *rehearsal.Outcome) {
	if out.Sent == nil {
		r.fail("sent", "a request that reaches its target", verdict(out))
		return
	}
	r.same("sent.target", want.GetTarget(), out.Sent.Target)
	r.same("sent.url", want.GetUrl(), out.Sent.URL)
	r.headers("sent.headers", want.GetHeaders(), out.Sent.Header)
	if want.GetArguments() != nil {
		got := out.Sent.Arguments
		if got == nil {
			got = map[string]any{}
		}
		if !reflect.DeepEqual(want.GetArguments().AsMap(), got) {
			r.fail("sent.arguments", show(want.GetArguments().AsMap()), show(got))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want.GetEnv())) {
		if got, ok := out.Sent.Env[name]; !ok || got != want.GetEnv()[name] {
			r.fail("sent.env."+name, want.GetEnv()[name], absent(got, ok))
		}
	}
}

func (r *run) received(want *testv1.Received, out *rehearsal.Outcome) {
	if want.GetStatus() != 0 && int(want.GetStatus()) != out.Status {
		r.fail("received.status", fmt.Sprint(want.GetStatus()), fmt.Sprint(out.Status))
	}
	r.headers("received.headers", want.GetHeaders(), out.Header)
	if want.GetText() != "" {
		got := strings.Join(texts(out.Result), "\n")
		if out.Error != nil {
			got = out.Error.Message
		}
		r.same("received.text", strings.TrimRight(want.GetText(), "\n"), strings.TrimRight(got, "\n"))
	}
	if want.GetStructuredContent() != nil {
		if got := out.Result["structuredContent"]; !reflect.DeepEqual(any(want.GetStructuredContent().AsMap()), got) {
			r.fail("received.structuredContent", show(want.GetStructuredContent().AsMap()), show(got))
		}
	}
	if want.IsError != nil {
		if got, _ := out.Result["isError"].(bool); got != want.GetIsError() {
			r.fail("received.isError", strconv.FormatBool(want.GetIsError()), strconv.FormatBool(got))
		}
	}
}

// texts are all of a result: of its content, contents or messages.
func texts(result map[string]any) []string {
	var all []string
	add := func(v any) {
		if m, ok := v.(map[string]any); ok {
			if text, ok := m["text"].(string); ok {
				all = append(all, text)
			}
		}
	}
	members := []string{"content", "contents", "messages"}
	if message, ok := result["message"].(map[string]any); ok { // of an A2A agent, in 1.0
		result, members = message, []string{"parts"}
	} else if result["parts"] != nil { // and in 0.3
		members = []string{"parts"}
	}
	for _, member := range members {
		list, _ := result[member].([]any)
		for _, item := range list {
			add(item)
			if m, ok := item.(map[string]any); ok {
				add(m["content"])
			}
		}
	}
	return all
}

// same compares unless nothing is wanted.
func (r *run) same(field, want, got string) {
	if want != "" && want != got {
		r.fail(field, want, absent(got, got != ""))
	}
}

// headers compares those that are wanted; null wants none.
func (r *run) headers(field string, want *structpb.Struct, got http.Header) {
	for _, name := range slices.Sorted(maps.Keys(want.GetFields())) {
		values := got.Values(name)
		text := strings.Join(values, ", ")
		switch v := want.GetFields()[name].AsInterface(); {
		case v == nil && len(values) > 0:
			r.fail(field+"."+name, "none", text)
		case v != nil && (len(values) == 0 || text != fmt.Sprint(v)):
			r.fail(field+"."+name, fmt.Sprint(v), absent(text, len(values) > 0))
		}
	}
}

func absent(got string, there bool) string {
	if !there {
		return "none"
	}
	return got
}
