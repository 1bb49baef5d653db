package mux

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// A transparent route leaves callers' tokens to its target, which is the protected resource. See
// docs/decisions/0007-transparent-passthrough.md.

// errNotTransparent refuses what validation does: a configuration that was put together in another way must not mix tokens.
var errNotTransparent = errors.New("passthrough of unverified tokens needs a target alone on a route without authentication of its own")

// takenKey is a session that goes on with a token that it did not begin with.
type takenKey struct {
	nonce  session.Nonce
	caller string
}

// takenAge is how long a target's word for such a token is believed.
const takenAge = 5 * time.Minute

// caller is whom caches and pools are keyed by: the Principal's ID, "" for the anonymous one.
func (x *Request) caller() string {
	if x.Principal == nil {
		return ""
	}
	return x.Principal.ID
}

// serveTransparent is serve where the target judges who calls.
func (m *Mux) serveTransparent(w http.ResponseWriter, x *Request, t *snapshot.Target) error {
	if x.Session != nil && x.Session.Caller != x.caller() {
		if err := x.goOn(t); err != nil {
			return err
		}
	}
	return m.serve(w, x)
}

// goOn lets a session go on with another token than it began with, as after a renewal or a step up, if the target takes that
// too: it is asked, for some of what follows is answered here. A token that is about somebody else is none of the session's even so.
func (x *Request) goOn(t *snapshot.Target) error {
	key := takenKey{x.Session.Nonce, x.caller()}
	if _, ok := x.mux.taken.Get(t.Tenant.Name, key); ok {
		return nil
	}
	_, err, _ := x.mux.flights.Do("go on\x00"+string(key.nonce[:])+key.caller, func() (any, error) {
		ctx, cancel := x.mux.fanOut(context.WithoutCancel(x.HTTP.Context()), t)
		defer cancel()
		return nil, x.takes(ctx, t)
	})
	if err != nil {
		return x.readdress(err)
	}
	if x.Session.Subject != "" && x.Session.Subject != x.Principal.Subject() {
		return x.sessionGone()
	}
	x.mux.taken.Put(t.Tenant.Name, key, struct{}{}, len(key.caller), time.Now().Add(takenAge))
	return nil
}

// Admits returns nil unless t, for which the route of x is transparent, refuses the caller's token, as far as server/discover tells: for
// what is begun here without asking the target anything. An error can be answered.
func (m *Mux) Admits(x *Request, t *snapshot.Target) error {
	x.mux = m
	ctx, cancel := m.fanOut(x.HTTP.Context(), t)
	defer cancel()
	resp, err := x.askDiscover(ctx, t)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.Status == http.StatusUnauthorized || resp.Status == http.StatusForbidden {
		return x.challenged(t, x.unauthorized(t, resp))
	}
	return nil
}

// takes returns nil if the target takes the caller's token, in the session if it keeps it.
func (x *Request) takes(ctx context.Context, t *snapshot.Target) error {
	leg, err := x.leg(ctx, t)
	if err != nil {
		return err
	}
	var resp *upstream.Response
	if bridged(leg) {
		resp, err = x.askDiscover(ctx, t)
	} else if resp, err = x.do(ctx, t, leg, outgoing{body: mcp.AppendRequest(nil, x.mux.ownID(), "ping", nil), method: "ping", safe: true}); err == nil && resp.Status == http.StatusNotFound && leg.ID != "" {
		_ = resp.Body.Close()
		_, err = x.lost(ctx, t, leg, true) // a session that is begun anew is begun with the token
		return err
	}
	if err != nil {
		return err
	}
	if resp, err = x.check(t, resp); err != nil {
		return err
	}
	_, err = x.readResponse(t, resp)
	return err
}

// challenged makes the challenge of a refusal the proxy's: its metadata is at the proxy too, as this client reaches it. Others may share
// the refusal, so it is copied.
func (x *Request) challenged(t *snapshot.Target, err error) error {
	refusal, ok := errors.AsType[*Error](err)
	if !ok || refusal.Header["Www-Authenticate"] == nil {
		return err
	}
	own := t.Policy.TransparentMetadata(x.HTTP)
	h := refusal.Header.Clone()
	for i, challenge := range h["Www-Authenticate"] {
		h["Www-Authenticate"][i], _ = replaceMetadata(challenge, own)
	}
	return &Error{refusal.Refusal, h}
}

// hearChallenge remembers where a target says that its metadata is, as long as that is at its own origin, and that the document may be
// another now. named is false without a challenge that says so.
func (x *Request) hearChallenge(t *snapshot.Target, challenges []string) (path string, named bool) {
	origin := upstream.URL(t)
	for _, challenge := range challenges {
		_, where := replaceMetadata(challenge, "")
		to, err := url.Parse(where)
		if where == "" || err != nil || !sameOrigin(to, origin) {
			continue
		}
		path, named = strings.Clone(to.RequestURI()), true // which may be part of the whole head
	}
	if named {
		x.mux.named.Put(t.Tenant.Name, t.Digest, path, len(t.Digest)+len(path), time.Now().Add(24*time.Hour))
	}
	x.mux.documents.Drop(t.Tenant.Name, t.Digest)
	return path, named
}

// sameOrigin: no other origin is asked for what this one says.
func sameOrigin(u, origin *url.URL) bool {
	port := func(u *url.URL) string {
		if p := u.Port(); p != "" {
			return p
		}
		return map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme == origin.Scheme && u.User == nil && strings.EqualFold(u.Hostname(), origin.Hostname()) && port(u) == port(origin)
}

// replaceMetadata returns challenges (RFC 9110 section 11.6.1) with own as the value of each parameter resource_metadata (RFC 9728
// section 5.1), and what stood in the first, "" if there is none. All else keeps its bytes.
func replaceMetadata(challenges, own string) (replaced, was string) {
	var out strings.Builder
	from := 0
	for i := 0; i < len(challenges); {
		switch c := challenges[i]; {
		case c == '"':
			_, i = quotedString(challenges, i)
		case isTokenByte(c):
			start := i
			for i < len(challenges) && isTokenByte(challenges[i]) {
				i++
			}
			at := skipBlank(challenges, i)
			if !strings.EqualFold(challenges[start:i], "resource_metadata") || at == len(challenges) || challenges[at] != '=' {
				continue
			}
			at = skipBlank(challenges, at+1)
			var value string
			if i = at; at < len(challenges) && challenges[at] == '"' {
				value, i = quotedString(challenges, at)
			} else {
				for i < len(challenges) && !strings.ContainsRune(", \t", rune(challenges[i])) {
					i++
				}
				value = challenges[at:i]
			}
			out.WriteString(challenges[from:at] + `"` + own + `"`)
			if from = i; was == "" {
				was = value
			}
		default:
			i++
		}
	}
	return out.String() + challenges[from:], was
}

// quotedString reads the one at i; end is behind it.
func quotedString(s string, i int) (text string, end int) {
	var b strings.Builder
	for i++; i < len(s) && s[i] != '"'; i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		b.WriteByte(s[i])
	}
	return b.String(), min(i+1, len(s))
}

func skipBlank(s string, i int) int {
	for i < len(s) && (s[i] == ' ' || s[i] == '\t') {
		i++
	}
	return i
}

func isTokenByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}
