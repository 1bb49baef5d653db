package controlplane

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/sluicegate/sluice/controlplane/api"
	"github.com/sluicegate/sluice/controlplane/tenant"
	"github.com/sluicegate/sluice/internal/policy"
	"github.com/sluicegate/sluice/internal/resource"
	adminv1 "github.com/sluicegate/sluice/proto/gen/sluice/admin/v1"
)

const (
	maxKeySet      = 1 << 20
	fetchTimeout   = 10 * time.Second
	refreshEvery   = 10 * time.Minute
	retryFirst     = 30 * time.Second // after a failure, doubled up to refreshEvery
	refreshLook    = 5 * time.Second  // how often the refresher looks what is due
	refreshAtOnce  = 4
	maxRedirects   = 3
	keysOfPlatform = "private-network" // the operator may name any address but a metadata service
)

// keySource is where keys are (see policy.JwksSource) on behalf of a tenant, or of the platform: the same URL may be
// within one's reach and not within another's.
type keySource struct {
	owner, url string
}

// keySet is what was fetched from a source. It is stored: a restart needs no network.
type keySet struct {
	Keys    []byte    `json:"keys"` // JSON, RFC 7517
	Fetched time.Time `json:"fetched"`
}

// keysNeeded stops an edit whose key sets are to be fetched first.
type keysNeeded struct {
	owner   string
	grants  []string
	missing map[string]*adminv1.Object
}

func (k *keysNeeded) Error() string {
	return fmt.Sprintf("%d key sets are not fetched yet", len(k.missing))
}

// keyFetcher fetches key sets, and remembers how their refreshing goes.
type keyFetcher struct {
	log *slog.Logger
	now func() time.Time

	mu       sync.Mutex // guards schedule
	schedule map[keySource]*keySchedule
}

type keySchedule struct {
	next     time.Time
	failures int
	err      error     // of the last try; nil if it went well
	good     time.Time // when it last went well
	busy     bool
}

func newKeyFetcher(log *slog.Logger, now func() time.Time) *keyFetcher {
	return &keyFetcher{log: log, now: now, schedule: map[keySource]*keySchedule{}}
}

// fetchAll adds to fetched what an edit needs, or errs with all that cannot be had, at the objects that name it.
func (k *keyFetcher) fetchAll(ctx context.Context, need *keysNeeded, fetched map[keySource]keySet) error {
	var wrong []*adminv1.Diagnostic
	for _, url := range slices.Sorted(maps.Keys(need.missing)) {
		keys, err := fetchKeys(ctx, need.owner, need.grants, url)
		if err != nil {
			wrong = append(wrong, atKeys(need.missing[url], url, err))
			continue
		}
		fetched[keySource{need.owner, url}] = keySet{Keys: keys, Fetched: k.now().UTC()}
		k.succeeded(keySource{need.owner, url})
	}
	if len(wrong) > 0 {
		return &api.Invalid{Diagnostics: wrong}
	}
	return nil
}

func atKeys(o *adminv1.Object, url string, err error) *adminv1.Diagnostic {
	field := ""
	for _, at := range slices.Sorted(maps.Keys(api.Jwks(o))) {
		if policy.JwksSource(api.Jwks(o)[at]) == url {
			field = at
			break
		}
	}
	return resource.Diagnose(o, adminv1.Diagnostic_SEVERITY_ERROR, field, err.Error(), "the control plane fetches it: it must be reachable from there")
}

// fetchKeys gets a key set through the tenant's own dialer: what it may not reach, the control plane does not reach for it.
func fetchKeys(ctx context.Context, owner string, grants []string, source string) ([]byte, error) {
	if owner == tenant.Platform {
		grants = []string{keysOfPlatform}
	}
	granted, err := policy.ParseGrants(grants)
	if err != nil {
		return nil, err
	}
	client := newFetcher(granted)
	url := source
	if issuer, ok := policy.SourceIssuer(source); ok {
		if url, err = client.discover(ctx, issuer); err != nil {
			return nil, err
		}
	}
	body, status, err := client.get(ctx, url, "application/jwk-set+json, application/json")
	switch {
	case err != nil:
		return nil, fmt.Errorf("key set: %w", err)
	case status != http.StatusOK:
		return nil, fmt.Errorf("key set %s: the answer is %d %s", url, status, http.StatusText(status))
	}
	return body, checkKeys(url, body)
}

func checkKeys(url string, body []byte) error {
	if len(body) > maxKeySet {
		return fmt.Errorf("key set %s: it is larger than %d bytes", url, maxKeySet)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(body, &set); err != nil {
		return fmt.Errorf("key set %s: no JSON Web Key Set: %w", url, err)
	}
	if len(set.Keys) == 0 {
		return fmt.Errorf("key set %s: it holds no key", url)
	}
	return nil
}

func (k *keyFetcher) succeeded(source keySource) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	k.schedule[source] = &keySchedule{good: now, next: now.Add(refreshEvery + rand.N(refreshEvery/10))}
}

func (k *keyFetcher) failed(source keySource, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.schedule[source]
	if s == nil {
		return // nobody names it any more
	}
	s.busy, s.err, s.failures = false, err, s.failures+1
	wait := min(retryFirst<<min(s.failures-1, 10), refreshEvery)
	s.next = k.now().Add(wait/2 + rand.N(wait/2))
}

// due returns the sources that are to be refreshed now, and forgets those that nobody names any more. A source that it
// has not seen before, after a restart, is due within a refresh interval: not all of them at once.
func (k *keyFetcher) due(named map[keySource]keySet) []keySource {
	k.mu.Lock()
	defer k.mu.Unlock()
	maps.DeleteFunc(k.schedule, func(source keySource, _ *keySchedule) bool { _, ok := named[source]; return !ok })
	now := k.now()
	var due []keySource
	for source, set := range named {
		s := k.schedule[source]
		if s == nil {
			s = &keySchedule{good: set.Fetched, next: now.Add(rand.N(refreshEvery))}
			if now.Sub(set.Fetched) > refreshEvery {
				s.next = now.Add(rand.N(retryFirst))
			}
			k.schedule[source] = s
		}
		if !s.busy && !now.Before(s.next) {
			due = append(due, source)
		}
	}
	slices.SortFunc(due, func(a, b keySource) int { return cmp.Or(cmp.Compare(a.owner, b.owner), cmp.Compare(a.url, b.url)) })
	due = due[:min(len(due), refreshAtOnce)]
	for _, source := range due {
		k.schedule[source].busy = true
	}
	return due
}

// refreshKeys keeps key sets fresh until ctx ends. A set that cannot be had stays as it was, and status says so.
func (p *publisher) refreshKeys(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	tick := time.NewTicker(refreshLook)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		named := map[keySource]keySet{}
		world := p.world.Load()
		for name, s := range world.tenants {
			for url, set := range s.keys {
				named[keySource{name, url}] = set
			}
		}
		for _, source := range p.keys.due(named) {
			wg.Go(func() { p.refresh(ctx, source, named[source]) })
		}
	}
}

func (p *publisher) refresh(ctx context.Context, source keySource, old keySet) {
	view, ok := p.View(source.owner)
	if !ok {
		return
	}
	keys, err := fetchKeys(ctx, source.owner, view.Grants, source.url)
	if err == nil && !slices.Equal(keys, old.Keys) {
		_, err = p.submit(ctx, api.Edit{Tenant: source.owner, Actor: "controlplane", Comment: "keys of " + source.url + " changed",
			Plan: func(context.Context, api.World) ([]api.Change, error) { return nil, nil }},
			map[keySource]keySet{source: {Keys: keys, Fetched: p.now().UTC()}})
	}
	if err != nil {
		if ctx.Err() == nil {
			p.log.Warn("refresh key set", "tenant", source.owner, "url", source.url, "err", err)
		}
		p.keys.failed(source, err)
		return
	}
	p.keys.succeeded(source)
}

// Warnings implements [api.Publisher].
func (p *publisher) Warnings(name string) []*adminv1.ObjectStatus {
	s := p.world.Load().tenant(name)
	if s == nil {
		return nil
	}
	var all []*adminv1.ObjectStatus
	objects := s.urls
	p.keys.mu.Lock()
	defer p.keys.mu.Unlock()
	for _, url := range slices.Sorted(maps.Keys(objects)) {
		if schedule := p.keys.schedule[keySource{name, url}]; schedule != nil && schedule.err != nil {
			all = append(all, &adminv1.ObjectStatus{Object: resource.Key(objects[url]), State: "Degraded",
				Reason: fmt.Sprintf("%v; the keys of %s stay in use", schedule.err, schedule.good.Format(time.RFC3339))})
		}
	}
	return all
}

// keySetName is where the store keeps a URL's keys: a URL may be longer than a key, and is nobody's business there.
func keySetName(url string) string {
	sum := sha256.Sum256([]byte(url))
	return keySetPrefix + hex.EncodeToString(sum[:16])
}
