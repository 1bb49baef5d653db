package mcp

import (
	"bytes"
	"fmt"
	"net/http"
	"strconv"
)

// JSON-RPC error codes of JSON-RPC 2.0 and of the MCP revisions.
const (
	CodeParse              = -32700
	CodeInvalidRequest     = -32600
	CodeMethodNotFound     = -32601
	CodeInvalidParams      = -32602
	CodeInternal           = -32603
	CodeResourceNotFound   = -32002 // session era; the stateless era says CodeInvalidParams
	CodeHeaderMismatch     = -32020 // stateless era: headers and body disagree, or a required header is missing
	CodeMissingCapability  = -32021 // stateless era: the client did not declare what the request needs
	CodeUnsupportedVersion = -32022 // stateless era: data holds "supported" and "requested"
	CodeURLElicitation     = -32042 // 2025-11-25
)

// An Error is a refusal that can be answered as it stands: HTTP status, and JSON-RPC error.
type Error struct {
	Code    int    // JSON-RPC code
	Status  int    // HTTP status; if zero, 200
	Message string // what was wrong, for the peer to read
	Data    []byte // raw JSON of error.data; nil: none
	ID      []byte // raw id of the request that is refused; nil: not known
	Allow   string // value of the Allow header, with status 405
}

// Error describes e for logs; it never holds more of the peer's bytes than Message does.
func (e *Error) Error() string {
	return "mcp: " + e.Message + " (" + strconv.Itoa(e.Code) + ")"
}

// HTTPStatus is e.Status, or 200 where that is zero.
func (e *Error) HTTPStatus() int {
	if e.Status == 0 {
		return http.StatusOK
	}
	return e.Status
}

// Append appends e as a JSON-RPC error response.
func (e *Error) Append(dst []byte) []byte {
	return AppendError(dst, e.ID, e.Code, e.Message, e.Data)
}

// StatusOf is the HTTP status that goes with an error of the stateless era, for servers behind transports that have none
// (2026-07-28, transports: streamable HTTP).
func StatusOf(code int) int {
	switch code {
	case CodeMethodNotFound:
		return http.StatusNotFound
	case CodeHeaderMismatch, CodeMissingCapability, CodeUnsupportedVersion:
		return http.StatusBadRequest
	}
	return http.StatusOK
}

func refusal(status, code int, format string, args ...any) *Error {
	return &Error{Code: code, Status: status, Message: fmt.Sprintf(format, args...)}
}

// RefusesMethod reports whether body is a peer's error that it has no such method, for the request with the raw id. Some send it with
// status 404, as 2026-07-28 has it; in a session that status alone says that the session is over.
func RefusesMethod(body, id []byte, lim Limits) bool {
	m, err := Scan(bytes.TrimSpace(body), lim)
	if err != nil || len(id) == 0 || !bytes.Equal(m.RawID(), id) {
		return false
	}
	code, ok := m.ErrorCode()
	return ok && code == CodeMethodNotFound
}
