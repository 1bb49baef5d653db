package mux

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/snapshot"
)

// discover serves server/discover: the only target's answer as it is, or one server made of all.
func (m *Mux) discover(w http.ResponseWriter, x *Request) error {
	if t := x.alone(); t != nil {
		return x.forward(w, t, item{lifecycle: true})
	}
	results := make([]serverSays, len(x.Backend.Targets))
	errs := x.eachTaken(x.HTTP.Context(), x.Backend.Targets, func(ctx context.Context, x *Request, t *snapshot.Target) error {
		resp, err := x.send(ctx, t, outgoing{body: x.Message.Body, method: x.Message.Method, safe: true})
		if err != nil {
			return err
		}
		msg, err := x.readResponse(t, resp)
		if err != nil {
			return err
		}
		if msg.Error.Present() {
			return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q refused server/discover: %s", t.Name, msg.ErrorLine())
		}
		if results[x.order(t)], err = parseServer(msg.Result.Of(msg.Body)); err != nil {
			return x.fail(http.StatusBadGateway, mcp.CodeInternal, "target %q answered server/discover with what cannot be read", t.Name)
		}
		return nil
	})
	var missing missing
	merge := newServerMerge()
	for i, t := range x.Backend.Targets {
		if errs[i] != nil {
			missing.add(t, errs[i])
			continue
		}
		merge.add(t.Name, results[i])
	}
	if err := missing.refuse(x, len(x.Backend.Targets), errs); err != nil {
		return err
	}
	if err := x.inCommon(w.Header()); err != nil {
		return err
	}
	return x.answer(w, merge.discoverResult(x.Verdict.Revision, slices.ContainsFunc(x.Backend.Targets, x.private), missing))
}

func (m *serverMerge) discoverResult(served mcp.Revision, private bool, missing missing) []byte {
	meta := map[string]any{"io.modelcontextprotocol/serverInfo": ownInfo}
	if raw := missing.meta(); raw != nil {
		var own map[string]json.RawMessage
		if err := json.Unmarshal(raw, &own); err == nil {
			meta[metaMissing] = own[metaMissing]
		}
	}
	out := map[string]any{"supportedVersions": []mcp.Revision{served}, "capabilities": m.capabilities}
	if text := strings.TrimSpace(m.instructions.String()); text != "" {
		out["instructions"] = text
	}
	// The hints and resultType are written where those of lists are.
	hints := m.hints.AppendResult(nil, mcp.Tail{Revision: served, Private: private, Meta: marshal(meta)})
	var more map[string]json.RawMessage
	if err := json.Unmarshal(hints, &more); err == nil {
		delete(more, mcp.Tools.Member())
		for name, value := range more {
			out[name] = value
		}
	}
	return marshal(out)
}
