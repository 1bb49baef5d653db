package mcp

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// tasked is a task's id as a gateway shows it; those that begin with keep it leaves alone.
func tasked(id []byte) []byte {
	if bytes.HasPrefix(id, []byte("keep")) {
		return nil
	}
	return append([]byte("T."), id...)
}

const relatedTo = `"_meta":{"io.modelcontextprotocol/related-task":{"taskId":"`

var taskCases = []struct{ name, in, want string }{
	{"made in 2025-11-25", `{"jsonrpc":"2.0","id":9223372036854775808,"result":{"task":{"taskId":"a","ttl":1e400,"status":"working"},"_meta":{"x":{"taskId":"x"}}}}`,
		`{"jsonrpc":"2.0","id":9223372036854775808,"result":{"task":{"taskId":"T.a","ttl":1e400,"status":"working"},"_meta":{"x":{"taskId":"x"}}}}`},
	{"made in 2026-07-28", ` { "id" : "taskId" , "result" : { "resultType":"task", "taskId" : "\u0061\/" , "ttlMs":null } } `,
		` { "id" : "taskId" , "result" : { "resultType":"task", "taskId" : "T.a/" , "ttlMs":null } } `},
	{"listed", `{"result":{"tasks":[{"taskId":"a"},{"x":{"taskId":"x"},"taskId":"keep\u0020b"},"taskId",["taskId"]]}}`,
		`{"result":{"tasks":[{"taskId":"T.a"},{"x":{"taskId":"x"},"taskId":"keep\u0020b"},"taskId",["taskId"]]}}`},
	{"result in 2025-11-25", `{"result":{"content":[{"uri":"u","taskId":"x"}],"structuredContent":{"taskId":"x","task":{"taskId":"x"}},` + relatedTo + `a","taskID":"x"}}}}`,
		`{"result":{"content":[{"uri":"t+u","taskId":"x"}],"structuredContent":{"taskId":"x","task":{"taskId":"x"}},` + relatedTo + `T.a","taskID":"x"}}}}`},
	{"result in 2026-07-28", `{"result":{"result":{"content":[{"uri":"u"}],"result":{"content":[{"uri":"x"}]},"taskId":"x"},"taskId":"a"}}`,
		`{"result":{"result":{"content":[{"uri":"t+u"}],"result":{"content":[{"uri":"x"}]},"taskId":"x"},"taskId":"T.a"}}`},
	{"status", `{"method":"notifications/tasks","params":{"taskId":"a","result":{"contents":[{"uri":"u"}]},"uri":"x"}}`,
		`{"method":"notifications/tasks","params":{"taskId":"T.a","result":{"contents":[{"uri":"t+u"}]},"uri":"x"}}`},
	{"asks", `{"method":"elicitation/create","params":{"message":"taskId",` + relatedTo + `a"}}},"id":0}`,
		`{"method":"elicitation/create","params":{"message":"taskId",` + relatedTo + `T.a"}}},"id":0}`},
	{"error", `{"error":{"code":1,"message":"taskId","data":{"taskId":"a","x":{"taskId":"x"},` + relatedTo + `b"}}}}}`,
		`{"error":{"code":1,"message":"taskId","data":{"taskId":"T.a","x":{"taskId":"x"},` + relatedTo + `T.b"}}}}}`},
	{"failed", `{"result":{"status":"failed","error":{"data":{"taskId":"a"}}}}`, `{"result":{"status":"failed","error":{"data":{"taskId":"T.a"}}}}`},
	{"escaped names", `{"r\u0065sult":{"task\u0049d":"a","_meta":{"io.modelcontextprotocol\/related\u002dtask":{"\u0074askId":"b"}}}}`,
		`{"r\u0065sult":{"task\u0049d":"T.a","_meta":{"io.modelcontextprotocol\/related\u002dtask":{"\u0074askId":"T.b"}}}}`},
	{"other types", `{"taskId":"x","result":{"taskId":1,"task":[{"taskId":"x"}],"tasks":{"taskId":"x"},"_meta":{"io.modelcontextprotocol/related-task":["taskId"]}}}`,
		`{"taskId":"x","result":{"taskId":1,"task":[{"taskId":"x"}],"tasks":{"taskId":"x"},"_meta":{"io.modelcontextprotocol/related-task":["taskId"]}}}`},
	{"batch", `[{"result":{"taskId":"a"}},{"params":{"taskId":"b"}}]`, `[{"result":{"taskId":"T.a"}},{"params":{"taskId":"T.b"}}]`},
}

func TestTasksAreRewrittenWhateverTheBorders(t *testing.T) {
	both := Rewrites{URI: prefixed, Task: tasked}
	for _, tt := range taskCases {
		whole, err := Rewrite([]byte("<"), []byte(tt.in), both)
		if diff := cmp.Diff("<"+tt.want, string(whole)); err != nil || diff != "" {
			t.Errorf("%s: %v (-want +got):\n%s", tt.name, err, diff)
		}
		for cut := range len(tt.in) + 1 {
			var out bytes.Buffer
			w := NewRewriter(&out, both)
			_, err1 := w.Write([]byte(tt.in[:cut]))
			_, err2 := w.Write([]byte(tt.in[cut:]))
			if err := w.Close(); err1 != nil || err2 != nil || err != nil || out.String() != tt.want {
				t.Fatalf("%s, cut at %d: %v %v %v\n%s", tt.name, cut, err1, err2, err, out.String())
			}
		}
		if same, err := Rewrite(nil, []byte(tt.in), Rewrites{Task: func([]byte) []byte { return nil }}); err != nil || string(same) != tt.in {
			t.Errorf("%s: with nothing to do it became %s (%v)", tt.name, same, err)
		}
		// Without tasks the paths that lead to them alone are none.
		if uris, err := Rewrite(nil, []byte(tt.in), Rewrites{URI: prefixed}); err != nil || strings.Contains(string(uris), "T.") || strings.Contains(string(uris), `"result":{"result":{"content":[{"uri":"t+`) {
			t.Errorf("%s: for URIs alone it became %s (%v)", tt.name, uris, err)
		}
	}
}

// places is where in a decoded message things stand, as the documentation has it; [] is each element.
func places() (tasks, uris []string) {
	metas := []string{"result._meta", "params._meta", "result.tools.[]._meta", "result.task._meta", "result.tasks.[]._meta", "result.result._meta", "params.result._meta"}
	tasks = []string{"result.taskId", "result.task.taskId", "result.tasks.[].taskId", "params.taskId"}
	for _, of := range []string{"", "result.", "params."} {
		tasks = append(tasks, of+"error.data.taskId")
		metas = append(metas, of+"error.data._meta")
	}
	for _, meta := range metas {
		tasks = append(tasks, meta+"."+MetaRelatedTask+".taskId")
		uris = append(uris, meta+".ui.resourceUri", meta+".ui/resourceUri")
	}
	for _, result := range []string{"result", "result.result", "params.result"} {
		uris = append(uris, result+".contents.[].uri")
		for _, content := range []string{".content", ".content.[]", ".messages.[].content", ".messages.[].content.[]"} {
			uris = append(uris, result+content+".uri", result+content+".resource.uri")
		}
	}
	return tasks, uris
}

// tasksDecoded is the model of [Rewrite]: a decoded message with what stands at these places rewritten.
func tasksDecoded(v any) any {
	tasks, uris := places()
	for _, of := range []string{"", "[]."} {
		for _, p := range tasks {
			change(v, steps(of+p), tasked)
		}
		for _, p := range uris {
			change(v, steps(of+p), prefixed)
		}
	}
	return v
}

func steps(path string) []string {
	path = strings.ReplaceAll(path, MetaRelatedTask, "RELATED")
	all := strings.Split(path, ".")
	for i := range all {
		if all[i] == "RELATED" {
			all[i] = MetaRelatedTask
		}
	}
	return all
}

func change(v any, path []string, f func([]byte) []byte) {
	switch v := v.(type) {
	case []any:
		if path[0] != "[]" || len(path) < 2 {
			return
		}
		for _, e := range v {
			change(e, path[1:], f)
		}
	case map[string]any:
		if text, ok := v[path[0]].(string); ok && len(path) == 1 {
			if to := f([]byte(text)); to != nil {
				v[path[0]] = string(to)
			}
		} else if len(path) > 1 {
			change(v[path[0]], path[1:], f)
		}
	}
}

func TestTaskRewriterAgreesWithTheDecodedForm(t *testing.T) {
	for _, tt := range taskCases {
		if strings.Contains(tt.in, "1e400") {
			continue // no float
		}
		var in, want any
		if json.Unmarshal([]byte(tt.in), &in) != nil || json.Unmarshal([]byte(tt.want), &want) != nil {
			t.Fatalf("%s is no JSON", tt.name)
		}
		if diff := cmp.Diff(want, tasksDecoded(in)); diff != "" {
			t.Errorf("%s (-want +model):\n%s", tt.name, diff)
		}
	}
}
