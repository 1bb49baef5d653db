package controlplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/merge"
	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/controlplane/xds"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const (
	maxBatch    = 128  // edits that share a commit
	keepHistory = 1000 // revisions of a tenant that the log reaches back
	trimEvery   = 250  // revisions, or outcomes of requests
)

// publisher is the one loop: derive and validate in memory, commit, publish. In this order: what a proxy was given is
// on stable storage, and what is on stable storage was found good.
type publisher struct {
	store  store.Store
	vault  *tenant.Vault
	server *xds.Server
	keys   *keyFetcher
	log    *slog.Logger
	now    func() time.Time
	meter  *meter

	asked    map[string]int // outcomes remembered since a tenant was last trimmed; the loop's own
	requests chan *request
	done     chan struct{}         // closed when the loop is over
	broken   error                 // why, once done is closed; nil: it was asked to
	world    atomic.Pointer[layer] // what is published; has no parent
}

var _ api.Publisher = (*publisher)(nil)

type request struct {
	ctx     context.Context // of the caller, for as long as it waits
	edit    api.Edit
	fetched map[keySource]keySet
	reply   chan reply
}

type reply struct {
	outcome *api.Outcome
	err     error
}

var errStopping = errors.New("the control plane is stopping")

// run does edits until ctx ends, or until it is broken. What arrives while a batch is committed makes the next batch.
func (p *publisher) run(ctx context.Context) {
	defer close(p.done)
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-p.requests:
			if p.broken = p.process(p.gather(first)); p.broken != nil {
				return
			}
		}
	}
}

func (p *publisher) gather(first *request) []*request {
	batch := []*request{first}
	for len(batch) < maxBatch {
		select {
		case r := <-p.requests:
			batch = append(batch, r)
		default:
			return batch
		}
	}
	return batch
}

// Submit implements [api.Publisher]. Keys that the edit needs and nobody has yet are fetched here, not in the loop.
func (p *publisher) Submit(ctx context.Context, e api.Edit) (*api.Outcome, error) {
	fetched := map[keySource]keySet{}
	for {
		out, err := p.submit(ctx, e, fetched)
		var need *keysNeeded
		if !errors.As(err, &need) {
			return out, err
		}
		// Each round brings keys that were not there: the rounds are as many as an edit has URLs, at most.
		if err := p.keys.fetchAll(ctx, need, fetched); err != nil {
			return nil, err
		}
	}
}

func (p *publisher) submit(ctx context.Context, e api.Edit, fetched map[keySource]keySet) (*api.Outcome, error) {
	r := &request{ctx: ctx, edit: e, fetched: fetched, reply: make(chan reply, 1)}
	select {
	case p.requests <- r:
	case <-p.done:
		return nil, errStopping
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select { // its turn comes, unless the loop ends before
	case done := <-r.reply:
		return done.outcome, done.err
	case <-p.done:
		select {
		case done := <-r.reply:
			return done.outcome, done.err
		default:
			return nil, errStopping
		}
	}
}

// step is one edit that was found good.
type step struct {
	request *request
	outcome *api.Outcome
	layer   *layer
	txn     store.Txn
	publish []func() // in order, once txn is on stable storage
	touched []string // tenants with a new revision
	asked   string   // the tenant that remembers the outcome; empty: nobody
}

// process does a batch of edits in one commit. Each sees what those before it made. An error means that nobody knows any more
// what is stored.
func (p *publisher) process(batch []*request) error {
	world := p.world.Load()
	working := newLayer(world)
	outcomes := map[string]store.Outcome{} // of this batch, by tenant and request id
	var steps []*step
	var txn store.Txn
	for _, r := range batch {
		s, err := p.evaluate(r, working, outcomes)
		switch {
		case err != nil:
			r.reply <- reply{err: err}
		case len(s.txn) == 0 && len(steps) == 0: // no change, a dry run, or a retry: nothing to wait for
			r.reply <- reply{outcome: s.outcome}
		case len(s.txn) == 0: // the same, but it may stand on an edit of this batch that is not stored yet
			steps = append(steps, s)
		default:
			steps = append(steps, s)
			txn = append(txn, s.txn...)
			s.layer.into(working)
		}
	}
	if len(steps) == 0 {
		return nil
	}
	start := p.now()
	// The callers' contexts do not count any more: what is under way is done.
	if err := p.store.Commit(context.Background(), txn); err != nil {
		for _, s := range steps {
			s.request.reply <- reply{err: err}
		}
		p.log.Error("commit", "edits", len(steps), "err", err)
		return p.parted(steps, err)
	}
	p.meter.committed(len(txn), p.now().Sub(start))
	p.world.Store(working.flattened())
	for _, s := range steps {
		for _, publish := range s.publish {
			publish()
		}
		s.request.reply <- reply{outcome: s.outcome}
	}
	p.trim(steps)
	return nil
}

// parted errs if a commit that failed is there nevertheless: a file's last fsync may fail when all is written.
func (p *publisher) parted(steps []*step, failed error) error {
	world := p.world.Load()
	for _, s := range steps {
		for _, name := range s.touched {
			want := int64(0)
			if before := world.tenant(name); before != nil {
				want = before.view.Revision
			}
			if have, err := p.store.Revision(context.Background(), name); err != nil || have != want {
				return fmt.Errorf("tenant %q: a commit failed and is there nevertheless; look after the disk, then start again: %w", name, errors.Join(failed, err))
			}
		}
	}
	return nil
}

// evaluate says what an edit does, and changes nothing.
func (p *publisher) evaluate(r *request, working *layer, outcomes map[string]store.Outcome) (s *step, err error) {
	defer func() {
		if v := recover(); v != nil { // one tenant's input must not end the service of all
			p.log.Error("edit", "tenant", r.edit.Tenant, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			s, err = nil, fmt.Errorf("internal error; nothing was changed, the control plane's log says more")
		}
	}()
	if err := r.ctx.Err(); err != nil {
		return nil, context.Cause(r.ctx)
	}
	e := &evaluation{publisher: p, request: r, edit: r.edit, layer: newLayer(working), at: p.now().UTC().Truncate(time.Millisecond)}
	if outcome, err := e.repeated(outcomes); outcome != nil || err != nil {
		return &step{request: r, outcome: outcome}, err
	}
	if err := e.run(); err != nil {
		return nil, err
	}
	s = &step{request: r, outcome: e.outcome, layer: e.layer, txn: e.txn, publish: e.publish, touched: e.touched}
	if r.edit.DryRun {
		return &step{request: r, outcome: e.outcome}, nil
	}
	if r.edit.RequestID != "" {
		if err := e.remember(outcomes); err != nil {
			return nil, err
		}
		s.txn, s.asked = e.txn, r.edit.Tenant
	}
	return s, nil
}

// evaluation is one edit on its way through derive and validate.
type evaluation struct {
	*publisher
	request *request
	edit    api.Edit
	layer   *layer
	at      time.Time

	changes map[string]api.Change
	outcome *api.Outcome
	txn     store.Txn
	publish []func()
	touched []string
}

// repeated answers a request that was done before.
func (e *evaluation) repeated(outcomes map[string]store.Outcome) (*api.Outcome, error) {
	if e.edit.RequestID == "" || e.edit.DryRun {
		return nil, nil
	}
	done, ok := outcomes[e.edit.Tenant+"/"+e.edit.RequestID]
	if !ok {
		var err error
		done, err = store.Of(e.store, e.edit.Tenant).Outcome(e.request.ctx, e.edit.RequestID)
		if errors.Is(err, store.ErrNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	if done.Request != e.edit.Request {
		return nil, &api.Conflict{Reason: fmt.Sprintf("request id %q was used for another request; take a new one", e.edit.RequestID)}
	}
	return e.again(done)
}

// again reads an outcome back: what changed stands in the log.
func (e *evaluation) again(done store.Outcome) (*api.Outcome, error) {
	out := &api.Outcome{Revision: done.Revision}
	records := store.Of(e.store, e.edit.Tenant)
	entry, err := records.Entry(e.request.ctx, done.Revision)
	if errors.Is(err, store.ErrNoRevision) || err == nil && entry.RequestID != e.edit.RequestID {
		return out, nil // it changed nothing, or so long ago that the log is trimmed
	}
	if err != nil {
		return nil, err
	}
	out.Before, out.After, err = records.Sides(e.request.ctx, entry.Ops)
	return out, err
}

// remember keeps the outcome for a retry, in the same transaction.
func (e *evaluation) remember(outcomes map[string]store.Outcome) error {
	done := store.Outcome{Request: e.edit.Request, Revision: e.outcome.Revision, Time: e.at}
	rev := store.Revision{Tenant: e.edit.Tenant, If: store.Unchecked, Entry: store.Entry{RequestID: e.edit.RequestID}, Outcome: &done}
	edit, err := rev.Edit()
	if err != nil {
		return err
	}
	e.txn = append(e.txn, edit)
	outcomes[e.edit.Tenant+"/"+e.edit.RequestID] = done
	return nil
}

func (e *evaluation) run() error {
	before := e.layer.tenant(e.edit.Tenant)
	if want := e.edit.IfRevision; want != 0 && before != nil && before.view.Revision != want {
		return &api.Conflict{Reason: fmt.Sprintf("tenant %q is at revision %d, not %d: somebody was faster; look at `sluice log` and `sluice diff`, then try again",
			e.edit.Tenant, before.view.Revision, want)}
	}
	changes, err := e.edit.Plan(e.request.ctx, e.layer)
	if err != nil {
		return err
	}
	e.outcome, e.changes = &api.Outcome{}, map[string]api.Change{}
	for _, c := range changes {
		e.changes[c.Tenant] = c
		e.outcome.Diagnostics = append(e.outcome.Diagnostics, c.Diagnostics...)
	}
	// The operator's level first: it is above all tenants.
	if err := e.platform(); err != nil {
		return err
	}
	if err := e.tenants(); err != nil {
		return err
	}
	if err := e.places(); err != nil {
		return err
	}
	switch after := e.layer.tenant(e.edit.Tenant); {
	case e.edit.DryRun && before != nil:
		e.outcome.Revision = before.view.Revision
	case after != nil:
		e.outcome.Revision = after.view.Revision
	}
	return nil
}

// platform does the part of an edit that belongs to no tenant.
func (e *evaluation) platform() error {
	change, ok := e.changes[tenant.Platform]
	if !ok && !e.fetchedFor(tenant.Platform) {
		return nil
	}
	change.Tenant = tenant.Platform
	before := e.layer.tenant(tenant.Platform)
	next, record, err := e.next(before, change)
	if err != nil {
		return err
	}
	if err := e.needKeys(next, nil); err != nil {
		return err
	}
	if !record.any && len(record.rev.Sources)+len(record.rev.Set) == 0 {
		return nil
	}
	return e.adopt(before, next, record, merge.Delta{}) // keys that were refreshed are a revision too: tenants are derived from them
}

// tenants does the rest: the tenants that the edit names, and all of them if what is above them changed.
func (e *evaluation) tenants() error {
	above := e.layer.tenant(tenant.Platform)
	_, changed := e.layer.tenants[tenant.Platform]
	names := slices.Sorted(maps.Keys(e.changes))
	if changed {
		names = append(names, e.layer.names()...)
	}
	for source := range e.request.fetched {
		names = append(names, source.owner)
	}
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		if name == tenant.Platform {
			continue
		}
		before := e.layer.tenant(name)
		change, own := e.changes[name]
		change.Tenant = name
		if change.Drop {
			e.drop(before)
			continue
		}
		if before == nil && !change.Create {
			continue // deleted while keys were fetched for it
		}
		if err := e.tenant(before, above, change, own); err != nil {
			return err
		}
	}
	return nil
}

// tenant derives one tenant, validates what differs, and lays down its revision.
func (e *evaluation) tenant(before, above *state, change api.Change, own bool) error {
	next, record, err := e.next(before, change)
	if err != nil {
		return err
	}
	next.view.Platform = operatorsLevel(above)
	if err := e.needKeys(next, above); err != nil {
		return err
	}
	next.in = e.inputs(next, above, before, record.changed)
	base := &merge.Output{}
	if before != nil && before.out != nil {
		base = before.out
	}
	var delta merge.Delta
	var found []*adminv1.Diagnostic
	if next.out, delta, err = base.Update(next.in); err != nil {
		found = merge.Diagnose(next.in, err)
	} else {
		found = next.out.Check(base)
	}
	if own {
		e.outcome.Diagnostics = append(e.outcome.Diagnostics, found...)
	}
	if resource.Failed(found) {
		if !own && before.out == nil { // since the start (see load): it waits for an edit of its own, and nobody waits for it
			next.out = nil
			return e.stand(before, next, record, merge.Delta{})
		}
		if !own { // an edit above: say whose it breaks
			for _, d := range found {
				d.Message = fmt.Sprintf("tenant %q: %s", next.view.Name, d.GetMessage())
			}
		}
		return &api.Invalid{Diagnostics: found}
	}
	return e.stand(before, next, record, delta)
}

// stand lays down a tenant's revision, if there is anything in it.
func (e *evaluation) stand(before, next *state, record *record, delta merge.Delta) error {
	switch {
	case record.any || !delta.Empty():
		return e.adopt(before, next, record, delta)
	case len(record.rev.Sources) > 0:
		return e.adopt(before, next, record, merge.Delta{})
	}
	if before != nil && before.view.Platform != next.view.Platform {
		next.view.Revision = before.view.Revision // nothing is stored
		e.layer.tenants[next.view.Name] = next    // what stands above it shows in explain
	}
	return nil
}

// places claims what the changed tenants' routes need, in the same transaction.
func (e *evaluation) places() error {
	var names []string
	regroup := false
	for name, s := range e.layer.tenants {
		if before := e.layer.parent.tenant(name); name != tenant.Platform {
			regroup = regroup || before == nil || s == nil
			if before == nil || s == nil || !sameMap(before.claims.routes, s.claims.routes) {
				names = append(names, name) // an edit of a target moves no place
			}
		}
	}
	platform, changed := e.layer.tenants[tenant.Platform]
	if changed {
		regroup = regroup || !sameGroups(platform, e.layer.parent.tenant(tenant.Platform))
	}
	if regroup {
		names = append(names, e.layer.regroup()...)
	}
	slices.Sort(names)
	claim, release, wrong := e.layer.reclaim(slices.Compact(names))
	if len(wrong) > 0 {
		return &api.Invalid{Diagnostics: wrong}
	}
	if len(claim)+len(release) > 0 {
		e.txn = append(e.txn, store.Edit{Space: store.Cluster, If: store.Unchecked, Delete: release, Claim: claim})
	}
	if regroup {
		served, _ := e.layer.groups()
		e.publish = append(e.publish, func() { e.server.Assign(served) })
	}
	return nil
}

func sameGroups(a, b *state) bool {
	groups := func(s *state) map[string]string {
		all := map[string]string{}
		for o := range s.view.Objects.Kind("group") {
			all[o.Key()] = o.Hash
		}
		return all
	}
	return maps.Equal(groups(a), groups(b))
}

func (e *evaluation) drop(before *state) {
	name := before.view.Name
	e.layer.tenants[name] = nil
	e.txn = append(e.txn,
		store.Edit{Space: store.Cluster, If: store.Unchecked, Delete: []string{before.view.Key()}},
		store.Edit{Space: name, If: store.Unchecked, Drop: true})
	e.publish = append(e.publish, func() { e.server.Drop(name) })
}
