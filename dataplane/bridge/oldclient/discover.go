package oldclient

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// server is what a stateless target says of itself.
type server struct {
	Capabilities map[string]json.RawMessage
	Instructions string
	Meta         struct {
		Info json.RawMessage `json:"io.modelcontextprotocol/serverInfo"`
	} `json:"_meta"`
	TTL   int64  `json:"ttlMs"`
	Scope string `json:"cacheScope"`

	name string // of the target
}

// serverKey: "" as principal is what all callers share.
type serverKey struct{ digest, principal, vary, capabilities string }

func (k serverKey) size() int {
	return len(k.digest) + len(k.principal) + len(k.vary) + len(k.capabilities)
}

// refusal is a target's own error.
type refusal struct {
	Code    int
	Message string
}

// maxDiscoverAge bounds how long a target may have its discover believed.
const maxDiscoverAge = 10 * time.Minute

// discover asks the target what it is, as seldom as it allows.
func (f *sessionsFace) discover(ctx context.Context, r *upstream.Request) (*server, *refusal, error) {
	key := serverKey{f.t.Digest, "=" + f.c.Principal, f.c.Vary, f.c.Session.Capabilities}
	public := key
	public.principal = ""
	tenant := f.t.Tenant.Name
	if s, ok := f.b.servers.Get(tenant, key); ok {
		return s, nil, nil
	}
	if s, ok := f.b.servers.Get(tenant, public); ok {
		return s, nil, nil
	}
	type outcome struct {
		server  *server
		refused *refusal
	}
	v, err := f.b.once(ctx, strings.Join([]string{"discover", tenant, key.digest, key.principal, key.vary, key.capabilities}, "\x00"), func(ctx context.Context) (any, error) {
		msg, err := f.ownRequest(ctx, r, "server/discover", object(append([]byte(`"_meta":`), object(f.meta(&mcp.Message{}), nil)...), nil))
		if err != nil {
			return nil, err
		}
		if msg.Error.Present() {
			no := &refusal{Code: mcp.CodeInternal}
			_ = json.Unmarshal(msg.Error.Of(msg.Body), no) // its code and message, as far as it has them
			return outcome{refused: no}, nil
		}
		s := &server{name: f.t.Name}
		if err := json.Unmarshal(msg.Result.Of(msg.Body), s); err != nil {
			return nil, err
		}
		if age := min(time.Duration(s.TTL)*time.Millisecond, maxDiscoverAge); age > 0 {
			if s.Scope == "public" && !f.t.Policy.PerCaller() {
				key = public
			}
			f.b.servers.Put(tenant, key, s, key.size()+s.size(), time.Now().Add(age))
		}
		return outcome{server: s}, nil
	})
	if err != nil {
		return nil, nil, err
	}
	o := v.(outcome)
	return o.server, o.refused, nil
}

// size is about how many bytes s takes.
func (s *server) size() int {
	n := 256 + len(s.Instructions) + len(s.Meta.Info) + len(s.Scope)
	for name, value := range s.Capabilities {
		n += 128 + len(name) + len(value)
	}
	return n
}

func (s *server) has(capability string) bool { return s.Capabilities[capability] != nil }

func (s *server) subscribes() bool {
	var r struct{ Subscribe bool }
	return json.Unmarshal(s.Capabilities["resources"], &r) == nil && r.Subscribe
}

// changes reports whether the target tells when a list changes.
func (s *server) changes(capability string) bool {
	var c struct{ ListChanged bool }
	return json.Unmarshal(s.Capabilities[capability], &c) == nil && c.ListChanged
}

// initializeResult is the same as the result of an initialize that agreed on version.
func (s *server) initializeResult(version string) []byte {
	caps := map[string]json.RawMessage{}
	for name, value := range s.Capabilities {
		if name == "tasks" { // of the session era; who has it in the other means something else
			continue
		}
		if name == "extensions" {
			var extensions map[string]json.RawMessage
			if json.Unmarshal(value, &extensions) != nil {
				continue
			}
			delete(extensions, mcp.TasksExtension) // it has no form that a client of the session era could use here
			if len(extensions) == 0 {
				continue
			}
			value, _ = json.Marshal(extensions) // raw values marshal
		}
		caps[name] = value
	}
	info := s.Meta.Info
	if info == nil {
		info, _ = json.Marshal(map[string]string{"name": s.name, "version": "unknown"})
	}
	out := struct {
		ProtocolVersion string                     `json:"protocolVersion"`
		Capabilities    map[string]json.RawMessage `json:"capabilities"`
		ServerInfo      json.RawMessage            `json:"serverInfo"`
		Instructions    string                     `json:"instructions,omitempty"`
	}{version, caps, info, s.Instructions}
	b, err := json.Marshal(out)
	if err != nil { // raw values that were read as JSON
		return []byte("{}")
	}
	return b
}
