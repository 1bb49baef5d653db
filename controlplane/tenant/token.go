package tenant

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/sluicegate/sluice/controlplane/store"
	"github.com/sluicegate/sluice/internal/mtls"
)

// Role is what an administrator may do. Each holds what the ones before it may.
type Role int

// The roles.
const (
	TenantViewer  Role = iota + 1 // reads one tenant
	TenantAdmin                   // changes one tenant
	PlatformAdmin                 // everything
)

var roles = map[Role]string{TenantViewer: "tenant-viewer", TenantAdmin: "tenant-admin", PlatformAdmin: "platform-admin"}

// String is the role as users write it.
func (r Role) String() string { return roles[r] }

// ParseRole reads what users write.
func ParseRole(text string) (Role, error) {
	for r, name := range roles {
		if name == text {
			return r, nil
		}
	}
	return 0, fmt.Errorf("role %q: use platform-admin, tenant-admin or tenant-viewer", text)
}

// Actor is an administrator who showed a good token.
type Actor struct {
	Name string
	Role Role
	// The one tenant it may name; empty for PlatformAdmin.
	Tenant string
}

// Type of a Token.
type Type int

// The types.
const (
	AdminToken Type = iota + 1 // opens the admin API
	JoinToken                  // lets proxies in
)

// Token is a record of a token; the text itself was shown once and is kept nowhere.
type Token struct {
	ID   string `json:"-"`
	Type Type   `json:"type"`
	// Hex of SHA-256 of the secret: 256 random bits need no slow hash.
	Hash string `json:"hash"`
	Name string `json:"name"`
	// Of an AdminToken.
	Role   Role   `json:"role,omitempty"`
	Tenant string `json:"tenant,omitempty"`
	// Of a JoinToken.
	Group string `json:"group,omitempty"`
	Uses  uint32 `json:"uses,omitempty"`
	// Zero: never.
	Expires time.Time `json:"expires,omitzero"`
}

func (t *Token) expired(now time.Time) bool { return !t.Expires.IsZero() && !now.Before(t.Expires) }

const (
	adminPrefix    = "sluice-admin-1-"
	defaultJoinTTL = time.Hour
)

// ErrToken says no more than it must: not whether the token ever was.
var ErrToken = errors.New("the admin token is missing or not valid")

// Authenticate returns who shows the token, or ErrToken.
func (r *Registry) Authenticate(text string) (Actor, error) {
	body, ok := strings.CutPrefix(text, adminPrefix)
	if !ok {
		return Actor{}, ErrToken
	}
	hash := hashText(sha256.Sum256([]byte(body)))
	r.mu.RLock()
	defer r.mu.RUnlock()
	t := r.byHash[hash]
	if t == nil || t.Type != AdminToken || t.expired(r.now()) {
		return Actor{}, ErrToken
	}
	return Actor{Name: t.Name, Role: t.Role, Tenant: t.Tenant}, nil
}

// CreateAdminToken makes a token for role. ttl 0: it never expires. An empty name is made from role and tenant. If good is not
// nil, its error refuses the token: it is asked while no token can be revoked.
func (r *Registry) CreateAdminToken(ctx context.Context, role Role, tenant, name string, ttl time.Duration, good func() error) (Token, string, error) {
	if (role == PlatformAdmin) != (tenant == "") {
		return Token{}, "", fmt.Errorf("role %s and tenant %q do not go together: tenant roles need a tenant, platform-admin has none", role, tenant)
	}
	if name == "" {
		name = strings.TrimSuffix(role.String()+"/"+tenant, "/")
	}
	text := newSecret()
	t := Token{Type: AdminToken, Hash: hashText(sha256.Sum256([]byte(text))), Name: name, Role: role, Tenant: tenant}
	t.ID = t.Hash[:12]
	if ttl != 0 {
		t.Expires = r.now().Add(ttl)
	}
	return t, adminPrefix + text, r.addToken(ctx, t, good)
}

// CreateJoinToken makes a token that lets proxies into group, pinned to the CA. uses 0: once. ttl 0: an hour.
func (r *Registry) CreateJoinToken(ctx context.Context, pin [32]byte, group, name string, uses uint32, ttl time.Duration) (Token, string, error) {
	if group == "" {
		group = Default
	}
	if name == "" {
		name = "join/" + group
	}
	if ttl == 0 {
		ttl = defaultJoinTTL
	}
	join := mtls.NewJoinToken(pin)
	t := Token{ID: join.ID(), Type: JoinToken, Hash: hashText(join.Hash()), Name: name, Group: group,
		Uses: max(uses, 1), Expires: r.now().Add(ttl)}
	return t, join.Encode(), r.addToken(ctx, t, nil)
}

func (r *Registry) addToken(ctx context.Context, t Token, good func() error) error {
	return r.update(ctx, func() (change, error) {
		if good != nil {
			if err := good(); err != nil {
				return change{}, err
			}
		}
		c := change{tokens: map[string]*Token{t.ID: &t}}
		for id, old := range r.tokens { // the list holds what can still be used
			if old.expired(r.now()) {
				c.tokens[id] = nil
			}
		}
		return c, nil
	})
}

// RevokeToken ends a token. store.ErrNotFound if there is none.
func (r *Registry) RevokeToken(ctx context.Context, id string) error {
	return r.update(ctx, func() (change, error) {
		if r.tokens[id] == nil {
			return change{}, store.ErrNotFound
		}
		return change{tokens: map[string]*Token{id: nil}}, nil
	})
}

// RevokeTenants ends all tokens of tenants that are gone: one made later under the same name is another.
func (r *Registry) RevokeTenants(ctx context.Context, gone func(tenant string) bool) error {
	return r.update(ctx, func() (change, error) {
		c := change{tokens: map[string]*Token{}}
		for id, t := range r.tokens {
			if t.Type == AdminToken && t.Role != PlatformAdmin && gone(t.Tenant) {
				c.tokens[id] = nil
			}
		}
		return c, nil
	})
}

// Tokens returns those that can be used, by name.
func (r *Registry) Tokens() []Token {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var all []Token
	for _, t := range r.tokens {
		if !t.expired(r.now()) {
			all = append(all, *t)
		}
	}
	slices.SortFunc(all, func(a, b Token) int { return strings.Compare(a.Name+"\x00"+a.ID, b.Name+"\x00"+b.ID) })
	return all
}

// Bootstrap makes the first platform-admin token and writes it to admin.token (0600) in dir, unless there is such
// a token. The file comes first: a token that was lost in a crash is made anew.
func (r *Registry) Bootstrap(ctx context.Context, dir string) error {
	for _, t := range r.Tokens() {
		if t.Role == PlatformAdmin {
			return nil
		}
	}
	text := newSecret()
	if err := mtls.WriteFile(filepath.Join(dir, "admin.token"), []byte(adminPrefix+text+"\n")); err != nil {
		return err
	}
	hash := hashText(sha256.Sum256([]byte(text)))
	return r.addToken(ctx, Token{ID: hash[:12], Type: AdminToken, Hash: hash, Name: "admin", Role: PlatformAdmin}, nil)
}

func newSecret() string {
	var secret [32]byte
	rand.Read(secret[:]) //nolint:errcheck // never fails
	return base64.RawURLEncoding.EncodeToString(secret[:])
}

func hashText(hash [32]byte) string { return hex.EncodeToString(hash[:]) }
