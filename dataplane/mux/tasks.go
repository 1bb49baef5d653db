package mux

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// Tasks of both eras: a target makes one of a tool's call, and the client asks for it by its id. See
// docs/decisions/0006-tasks.md.

// seals reports whether a client sees a target's tasks under sealed ids: among several, so that an id tells whose it is, and
// under rules, so that it tells which tool made it and for whom.
func (x *Request) seals(t *snapshot.Target) bool {
	return x.Codec != nil && (x.wraps(t) || t.Policy.Authorizes())
}

// translates reports whether what a target says of tasks is not what the client is shown: it seals them, or did so when it gave
// out the id that is asked for.
func (x *Request) translates(t *snapshot.Target) bool {
	return x.seals(t) || x.item.kind == policy.Task && x.item.own != x.item.shown
}

// byTask serves what is asked about one task.
func (m *Mux) byTask(w http.ResponseWriter, x *Request) error {
	id, err := x.Message.Target()
	if err != nil {
		return err // an id that rules cannot see
	}
	shown := id.String()
	t, own, tool := x.task(shown)
	if t == nil && x.Codec == nil {
		return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "this proxy has no session keys yet; try again")
	}
	if t == nil {
		return x.notFound(policy.Task, shown)
	}
	return x.forward(w, t, item{kind: policy.Task, own: own, shown: shown, at: id, tool: tool})
}

// task finds the target of a task, its own id, and the tool that made it, if that is known; nil if there is none. An id that
// is not ours, or not this caller's, may be one that the target gave out itself, where it is the one whose ids pass as they are.
func (x *Request) task(shown string) (t *snapshot.Target, own, tool string) {
	if x.Codec != nil {
		if sealed, err := x.Codec.OpenTask(x.Scope, shown); err == nil {
			return x.target(sealed.Target), sealed.ID, sealed.Tool
		}
	}
	return x.bare(), shown, ""
}

// taskKey is whose task it is.
type taskKey struct {
	session.Scope
	target, id string
}

// taskAge is how long it is remembered which tool made a task. Its sealed id, which says so for good, is how the client asks; this
// is for what a target says of it without being asked.
const taskAge = 24 * time.Hour

// remember notes which tool made a task, for what is said of it elsewhere.
func (x *Request) remember(t *snapshot.Target, own, tool string) {
	if tool != "" {
		size := len(x.Scope.Tenant) + len(x.Scope.Backend) + len(x.Scope.Principal) + len(t.Name) + len(own) + len(tool)
		x.mux.tasks.Put(t.Tenant.Name, taskKey{x.Scope, t.Name, own}, tool, size, time.Now().Add(taskAge))
	}
}

// toolOf is the tool that made a task; "" where no rule asks, or this proxy has not seen it.
func (x *Request) toolOf(t *snapshot.Target, own string) string {
	if !t.Policy.Authorizes() {
		return ""
	}
	tool, _ := x.mux.tasks.Get(t.Tenant.Name, taskKey{x.Scope, t.Name, own})
	return tool
}

// clientTask is a target's own id of a task as this client knows it. made is the tool whose call's answer says it, else "".
func (x *Request) clientTask(t *snapshot.Target, own, made string) string {
	if x.item.kind == policy.Task && own == x.item.own {
		return x.item.shown // as it was asked for, whatever key seals now
	}
	if shown, ok := x.listened[taskKey{target: t.Name, id: own}]; ok {
		return shown
	}
	if !x.seals(t) {
		return own
	}
	tool := made
	if tool == "" || !t.Policy.Authorizes() {
		tool = x.toolOf(t, own)
	}
	return x.Codec.SealTask(x.Scope, session.Task{Target: t.Name, Tool: tool, ID: own})
}

// rewrites is what becomes of a target's response to the request at hand.
func (x *Request) rewrites(t *snapshot.Target) mcp.Rewrites {
	r := mcp.Rewrites{URI: x.rewriteURI(t), Private: x.restricts(t)}
	if x.alone() == nil {
		r.ID = x.requestID() // clients match by id alone, and a target must not answer what another was asked
		if r.ID == nil && x.Message != nil {
			r.ID = []byte("null") // the client's message was no request
		}
	}
	if !x.translates(t) || !x.speaksOfTasks() {
		return r
	}
	made := ""
	if x.item.kind == policy.Tool {
		made = x.item.own
	}
	r.Task = func(id []byte) []byte {
		own := string(id)
		if t.Policy.Authorizes() {
			x.remember(t, own, made)
		}
		return []byte(x.clientTask(t, own, made))
	}
	return r
}

// needsKeys refuses what would show a client, or ask it for, an id that this proxy has no key to seal yet.
func (x *Request) needsKeys(t *snapshot.Target) error {
	if x.Codec == nil && (x.wraps(t) || t.Policy.Authorizes()) && x.speaksOfTasks() {
		return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "this proxy has no session keys yet; try again")
	}
	return nil
}

// speaksOfTasks reports whether the answer to the request at hand may name a task. No server may answer with one unless it
// was asked to, or the client says that it can take one; a member of an answer that happens to be called so is none.
func (x *Request) speaksOfTasks() bool {
	switch {
	case x.item.kind == policy.Task || x.Message == nil: // or the request was another, whose stream is resumed
		return true
	case x.item.kind != policy.Tool:
		return false
	case x.stateless():
		return x.takesTasks()
	default:
		return x.Message.Task.Present()
	}
}

// takesTasks reports whether a client of the stateless era has the extension.
func (x *Request) takesTasks() bool {
	raw := x.Message.Meta.ClientCapabilities.Of(x.Message.Body)
	if !bytes.Contains(raw, []byte("tasks")) {
		return false
	}
	var caps struct{ Extensions map[string]json.RawMessage }
	err := json.Unmarshal(raw, &caps)
	return err == nil && caps.Extensions[mcp.TasksExtension] != nil
}

// errHidden is for a message that is not for this client.
var errHidden = errors.New("the message is about what the caller may not see")

// translateTasks seals tasks' ids in what a target says without being asked, or asks itself. Requests about tasks are about
// the client's own.
func (x *Request) translateTasks(t *snapshot.Target, msg *mcp.Message, body []byte) ([]byte, error) {
	info := msg.Info()
	r := mcp.Rewrites{Task: func(id []byte) []byte { return []byte(x.clientTask(t, string(id), "")) }}
	switch {
	case !x.translates(t) || msg.Kind == mcp.Batch || info.Routing == mcp.ByTask || info.List == mcp.Tasks:
		return body, nil
	case msg.Method == "notifications/tasks/status" || msg.Method == "notifications/tasks":
		if !x.mayHear(t, msg.TaskID.String()) {
			return nil, errHidden
		}
		r.URI = x.rewriteURI(t) // in what the task resulted in
	case !bytes.Contains(body, []byte("related-task")) && !bytes.ContainsRune(body, '\\'):
		return body, nil
	}
	return mcp.Rewrite(nil, body, r)
}

// mayHear reports whether the client may be told of a task. One that it listens to was admitted then.
func (x *Request) mayHear(t *snapshot.Target, own string) bool {
	if !t.Policy.Authorizes() || x.item.kind == policy.Task && own == x.item.own {
		return true
	}
	if _, ok := x.listened[taskKey{target: t.Name, id: own}]; ok {
		return true
	}
	return x.admitListedTask(t, own)
}

// admitListedTask reports whether rules let the caller see a task that was not asked for.
func (x *Request) admitListedTask(t *snapshot.Target, own string) bool {
	if !t.Policy.Authorizes() {
		return true
	}
	call := x.call(t, policy.Task, own)
	call.Tool, call.Work = x.toolOf(t, own), x.work
	if call.Tool != "" {
		if c, ok := x.mux.catalogs.Get(t.Tenant.Name, x.catalogKey(t, mcp.Tools)); ok {
			call.Annotations = c.items[call.Tool].annotations
		}
	}
	return t.Policy.AdmitList(&call).Allowed
}

// taskCall is what rules are asked about a request for a task. listed is false if the target has the task's tool no more.
func (x *Request) taskCall(ctx context.Context, t *snapshot.Target, own, tool string) (call policy.Call, listed bool, err error) {
	call = x.call(t, policy.Task, own)
	if call.Tool = tool; tool == "" {
		return call, true, nil
	}
	call.Annotations, listed, err = x.lookUp(ctx, t, policy.Tool, tool)
	return call, listed, err
}

// ownTasks puts a target's own ids of tasks into what goes to it: clients name the task that a message belongs to.
func (x *Request) ownTasks(t *snapshot.Target, body []byte) []byte {
	if x.Codec == nil || !bytes.Contains(body, []byte("related-task")) {
		return body
	}
	out, err := mcp.Rewrite(nil, body, mcp.Rewrites{Task: func(id []byte) []byte {
		sealed, err := x.Codec.OpenTask(x.Scope, string(id))
		if err != nil || sealed.Target != t.Name {
			return nil
		}
		return []byte(sealed.ID)
	}})
	if err != nil {
		return body // for the target to refuse
	}
	return out
}

// refusesMethod reports whether a code is one by which servers say that they do not know a method that came without
// parameters: not all say it by the one for that.
func refusesMethod(code int) bool {
	return code == mcp.CodeMethodNotFound || code == mcp.CodeInvalidParams || code == mcp.CodeInvalidRequest
}

// knowsNoTasks reports whether a target among several refused the first page of a tasks/list by its HTTP status: go-sdk's
// servers answer so, in plain text, to a method that they do not know.
func (x *Request) knowsNoTasks(list mcp.List, cursor *string) bool {
	refused := x.Record.Status == http.StatusBadRequest || x.Record.Status == http.StatusMethodNotAllowed
	return list == mcp.Tasks && cursor == nil && x.alone() == nil && refused
}

// listensToTasks splits the tasks of a subscriptions/listen by target, less those that are not the caller's. The client keeps
// the ids that it asked with.
func (x *Request) listensToTasks(ctx context.Context, f filter, shares []filter) error {
	if len(f.Tasks) == 0 {
		return nil
	}
	if !x.takesTasks() {
		e := x.fail(http.StatusBadRequest, mcp.CodeMissingCapability, "Missing required client capability")
		e.Data = []byte(`{"requiredCapabilities":{"extensions":{"` + mcp.TasksExtension + `":{}}}}`)
		return e
	}
	x.listened = map[taskKey]string{}
	for _, shown := range f.Tasks {
		t, own, tool := x.task(shown)
		if t == nil {
			continue
		}
		asking := *x
		asking.Record = &Record{}
		if err := asking.admitTask(ctx, t, own, shown, tool); err != nil {
			if e, ok := errors.AsType[*Error](err); ok && asking.Record.Refused {
				x.Record.Refused, x.Record.Rule = true, asking.Record.Rule
				return e
			}
			continue
		}
		i := x.order(t)
		shares[i].Tasks = append(shares[i].Tasks, own)
		x.listened[taskKey{target: t.Name, id: own}] = shown
	}
	return nil
}

// sealsAny reports whether one of the client's ids of tasks is one that was sealed.
func (x *Request) sealsAny(ids []string) bool {
	return x.Codec != nil && slices.ContainsFunc(ids, func(id string) bool {
		_, err := x.Codec.OpenTask(x.Scope, id)
		return err == nil
	})
}

// honoursTask reports whether a target's acknowledgement holds a task.
func (x *Request) honoursTask(shown string, acks []filter) bool {
	t, own, _ := x.task(shown)
	if t == nil {
		return false
	}
	return slices.Contains(acks[x.order(t)].Tasks, own)
}
