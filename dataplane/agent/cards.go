package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/mux"
	"github.com/sluicegate/sluice/dataplane/upstream"
	"github.com/sluicegate/sluice/internal/guard"
	"github.com/sluicegate/sluice/internal/policy"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

// serveCard answers with the agent's card, made the proxy's. No copy is kept: what the agent changes is seen with the next
// request, and a client that has the card already is told so by its tag.
func serveCard(w http.ResponseWriter, x *mux.Request, at *Place) error {
	if x.HTTP.Method != http.MethodGet && x.HTTP.Method != http.MethodHead {
		e := x.Fail(http.StatusMethodNotAllowed, mcp.CodeInvalidRequest, "an agent's card is asked for by GET")
		e.Allow = "GET, HEAD"
		return e
	}
	if err := x.Take(at.Agent); err != nil {
		return err
	}
	ctx, cancel := x.Within(x.HTTP.Context(), at.Agent)
	defer cancel()
	card, err := fetchCard(ctx, x, at)
	if err != nil {
		return err
	}
	own := http.Header{"Content-Type": {mcp.TypeJSON}, "Cache-Control": {"private, no-cache"}, "Etag": {tag(card)}}
	if err := answerHead(x, at.Agent, w, own); err != nil {
		return err
	}
	if matches(x.HTTP.Header.Values("If-None-Match"), tag(card)) {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	w.WriteHeader(http.StatusOK)
	if x.HTTP.Method == http.MethodGet {
		_, _ = w.Write(card) // if the client is gone, there is nobody to tell
	}
	return nil
}

// fetchCard asks the agent, at the path of its own and at its host's root, for either name. Where there is no card an agent may answer
// anything, an error of JSON-RPC with status 200 too: what is no card is passed by, and told if there is none at all.
func fetchCard(ctx context.Context, x *mux.Request, at *Place) ([]byte, error) {
	var none error
	for _, path := range cardPaths(at) {
		card, err := fetchCardAt(ctx, x, at, path)
		var not *notCard
		switch {
		case err == nil:
			return card, nil
		case !errors.As(err, &not):
			return nil, err
		case none == nil || not.answered:
			none = not
		}
	}
	return nil, invalid(x, at.Agent, "its card: %v", none)
}

// notCard is why what an agent answered is no card.
type notCard struct {
	answered bool // it has something at the path
	why      string
}

func (e *notCard) Error() string { return e.why }

// fetchCardAt asks for the card at one path. If the agent has none there, the error is a [*notCard].
func fetchCardAt(ctx context.Context, x *mux.Request, at *Place, path string) ([]byte, error) {
	h := http.Header{"Accept": {mcp.TypeJSON}}
	passProtocol(x, at.Agent, h)
	resp, err := x.Exchange(ctx, at.Agent, &upstream.Request{
		Method: http.MethodGet, Path: path, Header: h, Call: x.Call(at.Agent, policy.Agent, ""),
	})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.Status {
	case http.StatusOK:
	case http.StatusUnauthorized, http.StatusForbidden:
		return nil, x.Unauthorized(at.Agent, resp)
	case http.StatusBadRequest, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusGone:
		return nil, &notCard{why: fmt.Sprintf("%s is answered %d", path, resp.Status)}
	default:
		return nil, invalid(x, at.Agent, "it answered %d for its card", resp.Status)
	}
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxCard+1))
	switch {
	case err != nil:
		return nil, x.Unreachable(at.Agent, err)
	case len(raw) > maxCard:
		return nil, invalid(x, at.Agent, "its card has more than %d bytes", maxCard)
	}
	card, err := rewriteCard(bytes.TrimPrefix(raw, []byte("\ufeff")), at.URL(x.HTTP), skillFilter(x, at.Agent))
	if err != nil {
		return nil, &notCard{true, fmt.Sprintf("%s: %v", path, err)}
	}
	card, err = x.Guard(ctx, at.Agent, policy.ToClient, card, guard.Card)
	if e, ok := errors.AsType[*mcp.Error](err); ok && e.HTTPStatus() == http.StatusOK {
		e.Status = http.StatusForbidden // who asks for a card would take all that comes with 200 for one
	}
	return card, err
}

// cardPaths are where an agent may have its card, the likeliest first.
func cardPaths(at *Place) []string {
	var own string
	switch tr := at.Agent.Config.GetTransport().(type) {
	case *xdsv1.Target_A2A:
		own = tr.A2A.GetPath()
	case *xdsv1.Target_Mcp:
		own = tr.Mcp.GetPath()
	}
	own, _, _ = strings.Cut(own, "?")
	bases := []string{strings.TrimRight(own, "/")}
	if bases[0] != "" {
		bases = append(bases, "")
	}
	other := wellKnown[0]
	if at.Name == other {
		other = wellKnown[1]
	}
	var paths []string
	for _, base := range bases {
		paths = append(paths, base+at.Name, base+other)
	}
	return paths
}

// skillFilter says which skills of a card the caller may see: those that it might call. Nil: all.
func skillFilter(x *mux.Request, t target) func(skill string) bool {
	if !t.Policy.Authorizes() {
		return nil
	}
	return x.Listing(t, policy.Agent)
}

// tag is the entity tag of what this caller gets.
func tag(card []byte) string {
	sum := sha256.Sum256(card)
	return `"` + base64.RawURLEncoding.EncodeToString(sum[:15]) + `"`
}

// matches reports whether an If-None-Match names the tag (RFC 9110 section 13.1.2).
func matches(header []string, tag string) bool {
	for _, line := range header {
		for one := range strings.SplitSeq(line, ",") {
			if one = strings.TrimPrefix(strings.TrimSpace(one), "W/"); one == tag || one == "*" {
				return true
			}
		}
	}
	return false
}
