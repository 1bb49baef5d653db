package mcp

import (
	"mime"
	"net/http"
	"strings"
)

// The two forms of an answer over HTTP (2025-03-26 and later, Transports).
const (
	TypeJSON   = "application/json"
	TypeStream = "text/event-stream"
)

// MediaType is the media type that a Content-Type header names, in lower case and without parameters; "" if there is none.
func MediaType(h http.Header) string {
	v := h.Get("Content-Type")
	if v == TypeJSON || v == TypeStream { // nearly always
		return v
	}
	kind, _, err := mime.ParseMediaType(v)
	if err != nil {
		kind, _, _ = strings.Cut(v, ";")
		kind = strings.ToLower(strings.TrimSpace(kind))
	}
	return kind
}
