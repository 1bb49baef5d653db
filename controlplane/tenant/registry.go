package tenant

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/internal/mtls"
)

// Registry holds tokens and proxies: in memory for every request, in the store before a change is told. It is safe
// for concurrent use.
type Registry struct {
	s   store.Store
	now func() time.Time

	mu       sync.RWMutex // guards what follows; held for writing while a change is committed
	revision int64        // of the cluster's space: replicas that change it at once do not lose a use of a token
	tokens   map[string]*Token
	byHash   map[string]*Token
	proxies  map[string]*Proxy
}

const (
	tokenPrefix = "token/"
	proxyPrefix = "proxy/"
)

// OpenRegistry loads tokens and proxies. If now is nil, time.Now.
func OpenRegistry(ctx context.Context, s store.Store, now func() time.Time) (*Registry, error) {
	if now == nil {
		now = time.Now
	}
	r := &Registry{s: s, now: now}
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Registry) load(ctx context.Context) error {
	revision, err := r.s.Revision(ctx, store.Cluster)
	if err != nil {
		return err
	}
	tokens, err := records[Token](ctx, r.s, tokenPrefix)
	if err != nil {
		return err
	}
	proxies, err := records[Proxy](ctx, r.s, proxyPrefix)
	if err != nil {
		return err
	}
	byHash := make(map[string]*Token, len(tokens))
	for id, t := range tokens {
		t.ID = id
		byHash[t.Hash] = t
	}
	for id, p := range proxies {
		p.ID = id
	}
	r.revision, r.tokens, r.byHash, r.proxies = revision, tokens, byHash, proxies
	return nil
}

func records[T any](ctx context.Context, s store.Store, prefix string) (map[string]*T, error) {
	pairs, err := s.Range(ctx, store.Cluster, store.Query{Prefix: prefix})
	if err != nil {
		return nil, err
	}
	all := make(map[string]*T, len(pairs))
	for _, pair := range pairs {
		record := new(T)
		if err := json.Unmarshal(pair.Value, record); err != nil {
			return nil, fmt.Errorf("record %s: %w", pair.Key, err)
		}
		all[strings.TrimPrefix(pair.Key, prefix)] = record
	}
	return all, nil
}

// change is what one update does to the records. A nil record is removed.
type change struct {
	tokens  map[string]*Token
	proxies map[string]*Proxy
}

// update commits what decide wants, on the records as they are. Where another replica was faster it decides again.
func (r *Registry) update(ctx context.Context, decide func() (change, error)) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		c, err := decide()
		if err != nil || len(c.tokens)+len(c.proxies) == 0 {
			return err
		}
		edit, err := c.edit(r.revision)
		if err != nil {
			return err
		}
		err = r.s.Commit(ctx, store.Txn{edit})
		var conflict *store.ConflictError
		if errors.As(err, &conflict) {
			if err := r.load(ctx); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		r.acceptLocked(c)
		return nil
	}
}

func (c change) edit(revision int64) (store.Edit, error) {
	edit := store.Edit{Space: store.Cluster, If: revision, Revision: revision + 1, Put: map[string][]byte{}}
	lay := func(key string, record any, gone bool) error {
		if gone {
			edit.Delete = append(edit.Delete, key)
			return nil
		}
		value, err := json.Marshal(record)
		edit.Put[key] = value
		return err
	}
	for id, t := range c.tokens {
		if err := lay(tokenPrefix+id, t, t == nil); err != nil {
			return edit, err
		}
	}
	for id, p := range c.proxies {
		if err := lay(proxyPrefix+id, p, p == nil); err != nil {
			return edit, err
		}
	}
	return edit, nil
}

func (r *Registry) acceptLocked(c change) {
	r.revision++
	for id, t := range c.tokens {
		if old := r.tokens[id]; old != nil {
			delete(r.byHash, old.Hash)
		}
		if t == nil {
			delete(r.tokens, id)
			continue
		}
		r.tokens[id], r.byHash[t.Hash] = t, t
	}
	for id, p := range c.proxies {
		if p == nil {
			delete(r.proxies, id)
			continue
		}
		r.proxies[id] = p
	}
}

// Proxy is one that was let in. Whether it is connected and what it serves stays in memory.
type Proxy struct {
	ID       string    `json:"-"`
	Group    string    `json:"group"`
	Enrolled time.Time `json:"enrolled"`
	// When the last of its certificates ends.
	Expires time.Time `json:"expires"`
	Revoked bool      `json:"revoked,omitempty"`
}

// Errors of proxies that are not let in.
var (
	ErrJoin    = errors.New("the join token is not valid: it was used up, has expired, was revoked or never was; make one with `sluice token create --type join`")
	ErrRevoked = errors.New("the proxy's certificate was revoked: join again with a new token, from an empty data directory")
	ErrUnknown = errors.New("the control plane does not know this proxy: join again with a new token, from an empty data directory")
)

// Join takes one use of the token and enrols a proxy, in one transaction. wish is what it would like to be called.
func (r *Registry) Join(ctx context.Context, token mtls.JoinToken, wish string, ttl time.Duration) (Proxy, error) {
	var proxy *Proxy
	err := r.update(ctx, func() (change, error) {
		hash := hashText(token.Hash())
		t := r.byHash[hash]
		if t == nil || t.Type != JoinToken || t.expired(r.now()) || t.Uses == 0 {
			return change{}, ErrJoin
		}
		proxy = r.newProxyLocked(t.Group, wish, ttl, nil)
		used := *t
		used.Uses--
		c := change{tokens: map[string]*Token{t.ID: &used}, proxies: map[string]*Proxy{proxy.ID: proxy}}
		if used.Uses == 0 {
			c.tokens[t.ID] = nil
		}
		r.forgetLocked(c.proxies)
		return c, nil
	})
	if err != nil {
		return Proxy{}, err
	}
	return *proxy, nil
}

// Enrol lets in n clients of a group that need no token, for certificates that an administrator hands out.
func (r *Registry) Enrol(ctx context.Context, group, wish string, n int, ttl time.Duration) ([]Proxy, error) {
	var enrolled []Proxy
	err := r.update(ctx, func() (change, error) {
		enrolled = nil
		c := change{proxies: map[string]*Proxy{}}
		for range n {
			p := r.newProxyLocked(group, wish, ttl, c.proxies)
			c.proxies[p.ID] = p
			enrolled = append(enrolled, *p)
		}
		return c, nil
	})
	return enrolled, err
}

func (r *Registry) newProxyLocked(group, wish string, ttl time.Duration, also map[string]*Proxy) *Proxy {
	base := proxyName(wish)
	id := base
	for n := 2; r.proxies[id] != nil || also[id] != nil; n++ {
		id = fmt.Sprintf("%s-%d", base, n)
	}
	now := r.now()
	return &Proxy{ID: id, Group: group, Enrolled: now, Expires: now.Add(ttl)}
}

// forgetLocked drops proxies whose certificate ended so long ago that it cannot be renewed: their names are free.
// A revoked one is forgotten then too, for its certificate is good for nothing any more.
func (r *Registry) forgetLocked(into map[string]*Proxy) {
	for id, p := range r.proxies {
		if r.now().Sub(p.Expires) > mtls.RenewGrace {
			if _, taken := into[id]; !taken {
				into[id] = nil
			}
		}
	}
}

// Renewed remembers until when a proxy's new certificate is good. An older one may be good for longer: those handed out by
// hand are.
func (r *Registry) Renewed(ctx context.Context, id string, expires time.Time) error {
	return r.update(ctx, func() (change, error) {
		p := r.proxies[id]
		if p == nil {
			return change{}, ErrUnknown
		}
		renewed := *p
		if expires.After(p.Expires) {
			renewed.Expires = expires
		}
		return change{proxies: map[string]*Proxy{id: &renewed}}, nil
	})
}

// Admit says whether a proxy with that identity may come in: nil, [ErrUnknown] or [ErrRevoked].
func (r *Registry) Admit(group, id string) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	p := r.proxies[id]
	switch {
	case p == nil || p.Group != group:
		return ErrUnknown
	case p.Revoked:
		return ErrRevoked
	}
	return nil
}

// Revoke refuses a proxy's certificates from now on. store.ErrNotFound if it is not known.
func (r *Registry) Revoke(ctx context.Context, id string) error {
	return r.update(ctx, func() (change, error) {
		p := r.proxies[id]
		if p == nil {
			return change{}, store.ErrNotFound
		}
		revoked := *p
		revoked.Revoked = true
		return change{proxies: map[string]*Proxy{id: &revoked}}, nil
	})
}

// Proxies returns all that were let in, by name.
func (r *Registry) Proxies() []Proxy {
	r.mu.RLock()
	defer r.mu.RUnlock()
	all := make([]Proxy, 0, len(r.proxies))
	for _, id := range slices.Sorted(maps.Keys(r.proxies)) {
		all = append(all, *r.proxies[id])
	}
	return all
}
