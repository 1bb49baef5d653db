package mux

import (
	"context"
	"encoding/binary"
	"net/http"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// list serves the lists: one page of each target that has one, merged, admitted and renamed.
func (m *Mux) list(w http.ResponseWriter, x *Request) error {
	list := x.Message.Info().List
	if t := x.alone(); t != nil && !x.prefixed() && !t.Policy.Authorizes() {
		return x.listThrough(w, t, list) // nothing to rename or to take away
	}
	parts, private, err := x.parts()
	if err != nil {
		return err
	}
	x.work = &policy.Work{}
	pages := make([][]*page, len(parts))
	whole := !x.prefixed() && x.alone() == nil && (list == mcp.Tools || list == mcp.Prompts)
	errs := x.eachTaken(x.HTTP.Context(), targetsOf(parts), func(ctx context.Context, x *Request, t *snapshot.Target) error {
		i := indexOf(parts, t)
		if whole {
			// Who owns a name without a prefix takes all names of all targets before: there are no pages then.
			all, err := x.allPages(ctx, t, list)
			pages[i] = all
			return err
		}
		p, err := x.page(ctx, t, list, parts[i].cursor, x.keeper(t, list, nil))
		if err == nil {
			pages[i] = []*page{p}
		}
		return err
	})
	var missing missing
	for i, p := range parts {
		if errs[i] != nil {
			missing.add(p.target, errs[i])
		}
	}
	if err := missing.refuse(x, len(parts), errs); err != nil {
		return err
	}
	err = x.merge(w, list, parts, private, pages, whole, missing)
	for _, of := range pages {
		for _, p := range of {
			p.free()
		}
	}
	return err
}

// part is one target's share of a page.
type part struct {
	target *snapshot.Target
	cursor *string // nil: the first page
}

// parts are the pages that a request is for: the first of every target, or those that its cursor names. They are private if a page
// before was.
func (x *Request) parts() (parts []part, private bool, err error) {
	if !x.Message.Cursor.IsString() {
		parts = make([]part, len(x.Backend.Targets))
		for i, t := range x.Backend.Targets {
			parts[i] = part{target: t}
		}
		return parts, false, nil
	}
	raw := x.Message.Cursor.String()
	if t := x.alone(); t != nil {
		return []part{{t, &raw}}, false, nil // cursors of the only target are its own
	}
	invalid := x.fail(http.StatusOK, mcp.CodeInvalidParams, "Invalid cursor: begin the list anew")
	if x.Codec == nil {
		return nil, false, invalid
	}
	cur, err := x.Codec.OpenCursor(x.Scope, raw)
	if err != nil || cur.Epoch != x.epoch() {
		return nil, false, invalid
	}
	for _, p := range cur.Parts {
		if t := x.target(p.Target); t != nil {
			parts = append(parts, part{t, &p.Cursor})
		}
	}
	if len(parts) == 0 {
		return nil, false, invalid
	}
	return parts, cur.Private, nil
}

// epoch names the targets and their places: a cursor is no good among others.
func (x *Request) epoch() string {
	h := uint32(offset32)
	for _, t := range x.Backend.Targets {
		h = fnv1a(h, t.Name) ^ place(t)
	}
	return string(binary.BigEndian.AppendUint32(nil, h))
}

func targetsOf(parts []part) []*snapshot.Target {
	targets := make([]*snapshot.Target, len(parts))
	for i, p := range parts {
		targets[i] = p.target
	}
	return targets
}

func indexOf(parts []part, t *snapshot.Target) int {
	for i, p := range parts {
		if p.target == t {
			return i
		}
	}
	return -1
}

// merge writes one page of the pages of several targets. Nil pages are those of targets that are missing.
func (x *Request) merge(w http.ResponseWriter, list mcp.List, parts []part, private bool, pages [][]*page, whole bool, missing missing) error {
	merge := mcp.NewMerge(list, x.mux.cfg.Limits)
	var next []session.Part
	owned := map[string]string{} // whole: name → target
	for i, part := range parts {
		if whole {
			x.claim(part.target, list, pages[i], owned)
		}
		keep := x.keeper(part.target, list, owned)
		for _, p := range pages[i] {
			read, err := addPage(merge, p, keep)
			if err != nil {
				x.Record.Err = err
				return x.unreadable(part.target, list)
			}
			if read.NextCursor.IsString() && !whole {
				next = append(next, session.Part{Target: part.target.Name, Cursor: read.NextCursor.String()})
			}
		}
		if list == mcp.Tools || list == mcp.Prompts {
			if all := pages[i]; len(all) > 0 && part.cursor == nil && (whole || len(next) == 0 || next[len(next)-1].Target != part.target.Name) && x.watches(part.target) {
				x.learn(part.target, list, all)
			}
		}
	}
	if x.work.Exhausted() { // what its rules did not get to is neither shown nor hidden
		return x.fail(http.StatusInternalServerError, mcp.CodeInternal, "the rules about %s cost too much: make the lists or the rules smaller", list.Method())
	}
	tail := mcp.Tail{Revision: x.revision(), Meta: missing.meta(), Private: private}
	for _, t := range x.Backend.Targets { // all of them: pages of one list have one scope
		tail.Private = tail.Private || x.private(t)
		tail.Passing = tail.Passing || t.Policy.ReadsTime()
	}
	switch {
	case len(next) == 0:
	case x.alone() != nil:
		tail.NextCursor = append([]byte{}, next[0].Cursor...)
	case x.Codec == nil:
		return x.fail(http.StatusServiceUnavailable, mcp.CodeInternal, "this proxy has no session keys yet; try again")
	default:
		tail.NextCursor = []byte(x.Codec.SealCursor(x.Scope, session.Cursor{Epoch: x.epoch(), Parts: next, Private: tail.Private || merge.Private()}))
	}
	if err := x.inCommon(w.Header()); err != nil {
		return err
	}
	before := append(append([]byte(`{"jsonrpc":"2.0","id":`), x.Message.RawID()...), `,"result":`...)
	return x.write(w, merge.Pieces(before, tail, []byte{'}'})...)
}

func addPage(merge *mcp.Merge, p *page, keep keeper) (mcp.Page, error) {
	if p.part != nil {
		return p.part.Page, merge.AddPart(*p.part)
	}
	return merge.Add(p.result, keep)
}

// keeper says what of a target's list the client sees, and under which name.
func (x *Request) keeper(t *snapshot.Target, list mcp.List, owned map[string]string) keeper {
	kind := [...]policy.ItemKind{mcp.Tools: policy.Tool, mcp.Prompts: policy.Prompt, mcp.Resources: policy.Resource, mcp.Templates: policy.Template, mcp.Tasks: policy.Task}[list]
	rules, wraps, prefixed, seals := t.Policy.Authorizes(), x.wraps(t), x.prefixed(), x.seals(t)
	return func(it *mcp.Item) bool {
		name := it.Name
		switch list {
		case mcp.Resources:
			name = it.URI
		case mcp.Templates:
			name = it.URITemplate
		case mcp.Tasks:
			name = it.TaskID
		}
		if !name.IsString() {
			return false // it could not be asked for
		}
		if owner, ok := owned[string(name.Value)]; ok && owner != t.Name {
			return false
		}
		if list == mcp.Tools && x.stateless() {
			if _, err := mcp.ParseParamHeaders(it.InputSchema.Of(it.Raw)); err != nil {
				return false // no client over HTTP may call it, so none may see it
			}
		}
		switch {
		case kind == policy.Task:
			if !x.admitListedTask(t, name.String()) {
				return false
			}
		case rules && !x.admitList(t, kind, name.String(), it.Annotations.Of(it.Raw)):
			return false
		}
		switch {
		case kind == policy.Task:
			if seals {
				it.Edits.String(name.Span, []byte(x.clientTask(t, name.String(), "")))
			}
		case kind == policy.Resource || kind == policy.Template:
			if wraps {
				it.SetURI([]byte(joinURI(t.Name, name.String())))
			}
		default:
			if prefixed {
				it.Rename([]byte(joinName(t.Name, name.String())))
			}
			for _, ui := range []mcp.Text{it.UI, it.UIBefore} {
				if wraps && ui.IsString() {
					it.Edits.String(ui.Span, []byte(joinURI(t.Name, ui.String())))
				}
			}
		}
		return true
	}
}

// claim gives the names of a target's list to it, but those that a target before it has. These are told once.
func (x *Request) claim(t *snapshot.Target, list mcp.List, pages []*page, owned map[string]string) {
	for _, p := range pages {
		_, _ = mcp.ReadList(list, p.result, x.mux.cfg.Limits, func(it *mcp.Item) error {
			name := it.Name.String()
			owner, taken := owned[name]
			if !taken {
				owned[name] = t.Name
				return nil
			}
			if owner == t.Name {
				return nil
			}
			name = name[:min(len(name), 200)]
			key := t.Resource + "\x00" + list.Method() + "\x00" + name
			if _, told := x.mux.reported.Get(t.Tenant.Name, key); !told {
				x.mux.reported.Put(t.Tenant.Name, key, struct{}{}, len(key), time.Time{})
				x.mux.log.Warn("name is hidden: an earlier target has it", "tenant", t.Tenant.Name, "backend", x.Backend.Name,
					"target", t.Name, "owner", owner, "list", list.Method(), "name", name)
			}
			return nil
		})
	}
}
