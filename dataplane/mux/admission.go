package mux

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"

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
	return x.decide(t, &call, kind, shown, listed)
}

// admitTask is admit for a task. tool made it, if that is known.
func (x *Request) admitTask(ctx context.Context, t *snapshot.Target, own, shown, tool string) error {
	if t.Refused != nil {
		return x.refusedConfig(t)
	}
	if !t.Policy.Authorizes() {
		return nil
	}
	call, listed, err := x.taskCall(ctx, t, own, tool)
	if err != nil {
		return err
	}
	return x.decide(t, &call, policy.Task, shown, listed)
}

// decide asks the rules. listed is false for what the target has not, as far as the proxy can tell.
func (x *Request) decide(t *snapshot.Target, call *policy.Call, kind policy.ItemKind, shown string, listed bool) error {
	v := t.Policy.Admit(call)
	x.Record.Rule = v.Rule
	switch {
	case !listed && (v.Allowed || v.Invalid != nil || v.Scopes != nil):
		return x.notFound(kind, shown)
	case v.Invalid != nil:
		return x.fail(http.StatusBadRequest, mcp.CodeInvalidRequest, "%v", v.Invalid)
	case v.Allowed:
		return nil
	}
	x.Record.Refused = true
	if v.Scopes != nil {
		return x.stepUp(v)
	}
	e := x.notFound(kind, shown)
	if v.Explain {
		e.Message, e.Data = x.explanation(kind, shown, v.Rule), nil
	}
	return e
}

// stepUp refuses what a token with more scopes may do, and names them.
func (x *Request) stepUp(v policy.Verdict) error {
	status, challenge := policy.ScopeChallenge(x.Principal, v.Scopes, x.Route.Policy.ResourceMetadata(x.HTTP))
	e := x.fail(status, mcp.CodeInvalidRequest, "insufficient scope: a token with scope %q is needed", strings.Join(v.Scopes, " "))
	if v.Explain {
		e.Message += ", says " + v.Rule
	}
	return &Error{e, http.Header{"Www-Authenticate": {challenge}}}
}

func (x *Request) explanation(kind policy.ItemKind, shown, rule string) string {
	if kind == policy.None {
		shown = x.method()
	}
	return fmt.Sprintf("%s %q is refused by %s", nouns[kind], shown, rule)
}

var nouns = map[policy.ItemKind]string{
	policy.None: "method", policy.Tool: "tool", policy.Prompt: "prompt", policy.Resource: "resource", policy.Template: "template", policy.Task: "task",
}

// admitList reports whether an item of a list is for this caller.
func (x *Request) admitList(t *snapshot.Target, kind policy.ItemKind, name string, annotations []byte) bool {
	call := x.call(t, kind, name)
	call.Annotations, call.Work = annotations, x.work
	return t.Policy.AdmitList(&call).Allowed
}

func (x *Request) call(t *snapshot.Target, kind policy.ItemKind, name string) policy.Call {
	c := policy.Call{
		Principal: x.Principal,
		Tenant:    t.Tenant.Name,
		Method:    x.method(),
		Target:    t.Name,
		HTTP:      x.HTTP,
		Start:     x.Start,
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
	switch {
	case o.kind != policy.Tool:
		c.Arguments = nil
	case o.arguments != nil:
		c.Arguments = o.arguments
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
// the proxy could not tell from a list whether the item exists. The target's answer still takes its own time. Of a task whose
// sealed id the caller holds he knows that it existed, and -32602 also says that it is over.
func (x *Request) masks(t *snapshot.Target, kind policy.ItemKind) bool {
	unsealed := kind == policy.Task && x.item.own == x.item.shown
	return t.Policy.Authorizes() && (kind == policy.Resource || kind == policy.Template || unsealed)
}

// masked reports whether a response is one by which targets say that they do not have something. One whose code cannot be read, or is
// spelled twice, may read so to some client.
func masked(msg *mcp.Message) bool {
	if msg.Kind != mcp.Response || !msg.Error.Present() {
		return false
	}
	code, ok := msg.ErrorCode()
	return !ok || slices.Contains([]int{mcp.CodeInvalidParams, mcp.CodeResourceNotFound}, code)
}
