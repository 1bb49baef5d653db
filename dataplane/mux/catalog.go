package mux

import (
	"context"
	"hash/fnv"
	"strconv"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/internal/policy"
)

// catalog is what this proxy last saw a target list: every name, and what rules may read of it. It never changes.
type catalog struct {
	items map[string]listed
	seen  time.Time
}

// listed is one item.
type listed struct {
	annotations []byte // raw; nil: it has none
	tool        *tool  // nil: no policy needs it
}

// catalogKey: servers list by who asks and what the client can do.
type catalogKey struct {
	digest, principal string
	vary              string // see [Request.vary]
	caps              uint64
	era               mcp.Era
	list              mcp.List
}

const (
	// catalogFresh is how long a list is believed where nothing says that it changed.
	catalogFresh = 30 * time.Second
	// catalogRetry is how soon a name that is missing from the list is looked for again.
	catalogRetry = time.Second
	// catalogAge is when a list is forgotten that could not be seen again.
	catalogAge = time.Hour
	// maxPages of one list; a server that always has a next page is cut off there.
	maxPages = 64
)

func (x *Request) catalogKey(t *snapshot.Target, list mcp.List) catalogKey {
	return catalogKey{t.Digest, x.caller(), x.vary(t), x.capabilities(), x.Verdict.Era, list}
}

// capabilities is a hash of the client's.
func (x *Request) capabilities() uint64 {
	h := fnv.New64a()
	if x.Session != nil {
		_, _ = h.Write([]byte(x.Session.Capabilities))
	} else if x.Message != nil {
		_, _ = h.Write(x.Message.Meta.ClientCapabilities.Of(x.Message.Body))
	}
	return h.Sum64()
}

// lookUp finds a tool or prompt in a target's list, which it fetches if it is not known or old. A list that cannot be
// fetched again is used as it was last seen; one never seen is an error.
func (x *Request) lookUp(ctx context.Context, t *snapshot.Target, kind policy.ItemKind, name string) (annotations []byte, found bool, err error) {
	it, found, err := x.lookUpItem(ctx, t, kind, name)
	return it.annotations, found, err
}

func (x *Request) lookUpItem(ctx context.Context, t *snapshot.Target, kind policy.ItemKind, name string) (it listed, found bool, err error) {
	list := mcp.Tools
	if kind == policy.Prompt {
		list = mcp.Prompts
	}
	key := x.catalogKey(t, list)
	c, ok := x.mux.catalogs.Get(t.Tenant.Name, key)
	if ok {
		it, found = c.items[name]
		age := time.Since(c.seen)
		if found && age < catalogFresh || age < catalogRetry {
			return it, found, nil
		}
	}
	fresh, err := x.fetchCatalog(ctx, t, list)
	if err != nil {
		if ok {
			return it, found, nil
		}
		return listed{}, false, err
	}
	it, found = fresh.items[name]
	return it, found, nil
}

// fetchCatalog reads a whole list. Requests that need it at the same time share it.
func (x *Request) fetchCatalog(ctx context.Context, t *snapshot.Target, list mcp.List) (*catalog, error) {
	key := x.catalogKey(t, list)
	flight := strings.Join([]string{"catalog", t.Tenant.Name, key.digest, key.principal, key.vary, list.Method(), key.era.String(), strconv.FormatUint(key.caps, 16)}, "\x00")
	v, err, _ := x.mux.flights.Do(flight, func() (any, error) {
		ctx, cancel := x.mux.fanOut(context.WithoutCancel(ctx), t)
		defer cancel()
		own := *x
		own.Record = &Record{}
		pages, err := own.allPages(ctx, t, list)
		if err != nil {
			x.Record.Err = own.Record.Err
			return nil, err
		}
		return x.learn(t, list, pages), nil
	})
	if err != nil {
		return nil, x.readdress(err)
	}
	return v.(*catalog), nil
}

// learn remembers a whole list.
func (x *Request) learn(t *snapshot.Target, list mcp.List, pages []*page) *catalog {
	c := &catalog{items: map[string]listed{}, seen: time.Now()}
	cost := 256
	tools := list == mcp.Tools && (t.Policy.Fills() || t.Policy.Guards(policy.ToTarget))
	for _, p := range pages {
		_, _ = mcp.ReadList(list, p.result, x.mux.cfg.Limits, func(it *mcp.Item) error {
			name := it.Name.String()
			if _, twice := c.items[name]; twice {
				return nil
			}
			annotations := append([]byte(nil), it.Annotations.Of(it.Raw)...)
			own := listed{annotations: annotations}
			if tools {
				own.tool = declaresOf(it.InputSchema.Of(it.Raw), t.Policy.Filled())
				cost += own.tool.size()
			}
			c.items[name] = own
			cost += 128 + len(name) + len(annotations)
			return nil
		})
	}
	key := x.catalogKey(t, list)
	x.mux.catalogs.Put(t.Tenant.Name, key, c, cost+len(key.digest)+len(key.principal)+len(key.vary), c.seen.Add(catalogAge))
	return c
}

// noteChange forgets lists that a target says have changed.
func (x *Request) noteChange(t *snapshot.Target, msg *mcp.Message) {
	var lists []mcp.List
	switch msg.Method {
	case "notifications/tools/list_changed":
		lists = []mcp.List{mcp.Tools}
	case "notifications/prompts/list_changed":
		lists = []mcp.List{mcp.Prompts}
	case "notifications/resources/list_changed":
		lists = []mcp.List{mcp.Resources, mcp.Templates}
	default:
		return
	}
	for _, list := range lists {
		x.mux.catalogs.Drop(t.Tenant.Name, x.catalogKey(t, list))
		x.mux.forgetPages(t, list)
	}
}
