package mcp

import "io"

// TasksExtension is the extension of 2026-07-28 that brings tasks, as capabilities name it.
const TasksExtension = "io.modelcontextprotocol/tasks"

// Rewrites is what becomes of a message on its way. Each function gets the decoded text and returns what stands there
// instead; nil leaves it as it is written. It must neither keep nor change its argument. A nil function leaves all.
type Rewrites struct {
	// URI is for URIs, where a [URIWriter] finds them.
	URI func(uri []byte) []byte
	// Task is for the ids of tasks, in both forms that the protocol has had (2025-11-25, and the extension of 2026-07-28):
	//
	//	result.taskId                   result.task.taskId              result.tasks[].taskId
	//	params.taskId                   error.data.taskId
	//	{result,params}._meta["io.modelcontextprotocol/related-task"].taskId
	//
	// and so in _meta of what a task resulted in, of a task, and of an error's data.
	Task func(id []byte) []byte
	// Private makes result.cacheScope private, where there is one.
	Private bool
	// ID is for the id of a response, raw, unless that is null; nil: it stays.
	ID []byte
}

// None reports whether nothing is rewritten.
func (r *Rewrites) None() bool { return r.URI == nil && r.Task == nil && !r.Private && r.ID == nil }

// NewRewriter writes to w what is written to it, as r has it; see [URIWriter].
func NewRewriter(w io.Writer, r Rewrites) *URIWriter {
	return &URIWriter{w: w, rewrite: r.URI, task: r.Task, private: r.Private, id: r.ID, next: root}
}

// Rewrite appends body to dst with all done that r says. A message that cannot be followed is an error.
func Rewrite(dst, body []byte, r Rewrites) ([]byte, error) {
	return (&URIWriter{rewrite: r.URI, task: r.Task, private: r.Private, id: r.ID, next: root, out: dst}).whole(dst, body)
}
