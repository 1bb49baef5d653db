package mux

import (
	"context"
	"net/http"
	"slices"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// admit asks a target's policies for one call. own is the item as the target knows it, shown as the client wrote it.
//
// A refusal hides that the item exists, so it must read like the answer for one that does not. With rules in force the
// proxy therefore answers both itself: what is admitted must also stand in the target's list. The list is looked up
// first in both cases, so that they take the same time; what remains is that a name may be asked for before this proxy
// has ever seen the list. A target whose tools work without being listed cannot have rules and be called so.
// Resources have no list that decides (templates make them up): see [Request.masks] for these.
func (x *Request) admit(ctx context.Context, t *snapshot.Target, kind policy.ItemKind, own, shown string) error {
	if t.Refused != nil {
		return x.refusedConfig(t)
	}
	if !t.Policy.Authorizes() {
		return nil
	}
	call := x.call(t, kind, own)
	listed := true
	if kind == policy.Tool || kind == policy.Prompt {
		var err error
		if call.Annotations, listed, err = x.lookUp(ctx, t, kind, own); err != nil {
			return err
		}
	}
	v := t.Policy.Admit(&call)
	x.Record.Rule = v.Rule
	switch {
	case v.Invalid != nil:
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "arguments: %v", v.Invalid)
	case v.Allowed && listed:
		return nil
	case v.Allowed:
		return x.notFound(kind, shown)
	}
	x.Record.Refused = true
	if v.Explain {
		return x.fail(http.StatusOK, mcp.CodeInvalidParams, "%s %q is refused by %s", nouns[kind], shown, v.Rule)
	}
	return x.notFound(kind, shown)
}

var nouns = map[policy.ItemKind]string{
	policy.None: "method", policy.Tool: "tool", policy.Prompt: "prompt", policy.Resource: "resource", policy.Template: "template", policy.Task: "task",
}

// admitList reports whether an item of a list is for this caller.
func (x *Request) admitList(t *snapshot.Target, kind policy.ItemKind, name string, annotations []byte) bool {
	call := x.call(t, kind, name)
	call.Annotations = annotations
	return t.Policy.AdmitList(&call).Allowed
}

func (x *Request) call(t *snapshot.Target, kind policy.ItemKind, name string) policy.Call {
	c := policy.Call{
		Principal: x.Principal,
		Tenant:    t.Tenant.Name,
		Method:    x.method(),
		Target:    t.Name,
		HTTP:      x.HTTP,
		Kind:      kind,
		Name:      name,
	}
	if x.Message != nil {
		c.Arguments = x.Message.Arguments.Of(x.Message.Body)
	}
	return c
}

// calling is what policies may know of a message on its way to a target. That need not be the client's own: a call may
// need a list first, or a session begun.
func (x *Request) calling(t *snapshot.Target, o outgoing) policy.Call {
	c := x.call(t, o.kind, o.own)
	c.Method = o.method
	if o.kind != policy.Tool {
		c.Arguments = nil
	}
	return c
}

func (x *Request) method() string {
	if x.Message == nil {
		return ""
	}
	return x.Message.Method
}

// masks reports whether a target's own "not found" for the item has to read like a refusal: rules are in force, and
// the proxy could not tell from a list whether the item exists. The target's answer still takes its own time.
func (x *Request) masks(t *snapshot.Target, kind policy.ItemKind) bool {
	return t.Policy.Authorizes() && (kind == policy.Resource || kind == policy.Template)
}

// masked reports whether code is one that targets use for what they do not have.
func masked(code int) bool {
	return slices.Contains([]int{mcp.CodeInvalidParams, mcp.CodeResourceNotFound}, code)
}
