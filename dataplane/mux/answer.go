package mux

import (
	"errors"
	"maps"
	"net/http"

	"github.com/sluicegate/sluice/dataplane/mcp"
)

// Answer writes an error that [Mux.Serve] returned, or one of mcp's own. Any other is an internal error.
func Answer(w http.ResponseWriter, err error) {
	h := w.Header()
	if e, ok := errors.AsType[*Error](err); ok {
		maps.Copy(h, e.Header)
	}
	e, ok := errors.AsType[*mcp.Error](err)
	if !ok {
		e = &mcp.Error{Status: http.StatusInternalServerError, Code: mcp.CodeInternal, Message: "internal error"}
	}
	if e.Allow != "" {
		h["Allow"] = []string{e.Allow}
	}
	h["Content-Type"] = typeJSON
	w.WriteHeader(e.HTTPStatus())
	_, _ = w.Write(e.Append(nil)) // the client is gone: nobody to tell
}
