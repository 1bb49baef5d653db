package newclient

import (
	"context"
	"errors"
	"net/http"
	"slices"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/upstream"
)

// discover answers server/discover with what the target said in initialize.
func (f *stateless) discover(ctx context.Context, r *upstream.Request, m *mcp.Message) (*upstream.Response, error) {
	c := clientOf(m)
	p, resp, err := f.join(ctx, r, m, &c)
	if errors.Is(err, errFull) || errors.Is(err, errShare) {
		return f.full(m, err), nil
	}
	if p == nil {
		return resp, err
	}
	defer p.leave()
	// Beside the bridge, every client of sessions reaches the target as it is.
	result := []byte(`{"resultType":"complete","supportedVersions":["` + mcp.V20260728 + `"`)
	for _, r := range slices.Backward(mcp.Revisions()) {
		if r.HasSessions() {
			result = mcp.AppendString(append(result, ','), string(r))
		}
	}
	result = append(append(result, `],"capabilities":`...), capabilities(p.says.capabilities)...)
	if text, ok := mcp.Unquote(p.says.instructions); ok && len(text) > 0 {
		result = append(append(result, `,"instructions":`...), p.says.instructions...)
	}
	result = append(result, `,"ttlMs":0,"cacheScope":"private"`...)
	if object(p.info) {
		result = append(append(append(result, `,"_meta":{"`+mcp.MetaServerInfo+`":`...), p.info...), '}')
	}
	return answered(http.StatusOK, mcp.AppendResult(nil, m.RawID(), append(result, '}'))), nil
}

// capabilities are a target's as 2026-07-28 has them: tasks are an extension there, of another form.
func capabilities(raw []byte) []byte {
	if !object(raw) {
		return []byte("{}")
	}
	var e mcp.Edits
	err := e.RemoveMembers(raw, mcp.Span{Start: 0, End: int32(len(raw))}, func(name []byte) bool { return string(name) == "tasks" })
	if err != nil {
		return []byte("{}")
	}
	return e.Apply(nil, raw)
}
