package dataplane

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// What an era has and the other has not, as it is spliced into messages or out of them: all else keeps its bytes.
const (
	// ofStateless stands in the _meta of what goes to a target of 2026-07-28 for an old client.
	ofStateless = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"}`
	ofResult    = `"resultType":"complete",`
	ofServer    = `"io.modelcontextprotocol/serverInfo":{"name":"fuzzed","version":"1"}`
)

// Everything that a decoder would not give back as it was: order of members, blanks, escapes, and numbers beyond what floats hold.
const (
	oddArguments = `{ "z":1,"region":"eu","a":9223372036854775808 ,"f":1e400,"u":"\u00e9\/<>& ","n":[ ],"k":{"K":-0.0}, "é":[1.0,1E+2]}`
	oddMember    = `"vendor\u002fx":[ 1e400,{"b":1,"a":-9223372036854775809} ]`
	oddContent   = `"content" : [ {"type":"text","text":"\u003cé\/\ud83d\ude00","vendor":{"x":9223372036854775809}} ] ,"structuredContent":{"n":1e400,"m":-0.0},"isError":false, ` + oddMember
)

var oddIDs = []string{`0`, `-0`, `""`, `"a\u0062\/"`, `9007199254740993`, `9223372036854775808`, `1.5`, `1e3`, `"é"`}

// A message that only passes through is never encoded anew, in none of the four cells: requests, results, errors and what comes on
// event streams are the same bytes on both legs, but for what the eras do not have in common.
func TestBytesPassThrough(t *testing.T) {
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		modern := client == "2026-07-28"
		var say func(c *mcptest.Conn, req rawCall)
		target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) { say(c, req) }})
		p := behind(target.URL).start(t)
		session := p.begun(t, client)
		// request is one on a leg of an era; the client's own members of _meta are odd too.
		request := func(stateless bool, id string) string {
			meta := `"progressToken" : 1.0 ,"my/key":1.50,"traceparent":"00-\u0061"`
			if stateless && modern {
				meta = fuzzedMetaMembers + `,` + meta
			} else if stateless {
				meta = ofStateless + `,` + meta
			}
			return `{ ` + oddMember + ` ,"params":{"arguments":` + oddArguments + `,"name":"\u0073afe","_meta":{` + meta + `},` + oddMember + `} , "id":` + id + `,"method":"tools\/call","jsonrpc":"2.0" }`
		}
		result := func(stateless bool, id string) string {
			kind, server := "", ""
			if stateless {
				kind = ofResult
			}
			if modern && stateless && !target.stateless {
				server = ofServer + `,`
			}
			return `{"jsonrpc":"2.0", "result":{` + kind + ` "_meta":{` + server + `"k":0.10},` + oddContent + `} ,"id":` + id + `,"x":1.0}`
		}
		headers := []string{"MCP-Protocol-Version", "2026-07-28", "Mcp-Method", "tools/call", "Mcp-Name", "safe", "Mcp-Param-Region", "eu"}
		if !modern {
			headers = nil
		}
		call := func(t *testing.T, id string) answer {
			t.Helper()
			got := p.post(t, session, request(modern, id), headers...)
			sent := target.posts.with(`"id":` + id + `,"method":"tools\/call"`)
			if len(sent) == 0 {
				t.Fatalf("id %s: nothing reached the target: %d %s", id, got.status, got.body)
			}
			if diff := cmp.Diff(request(stateless, id), sent[len(sent)-1]); diff != "" {
				t.Errorf("id %s: the target got (-want +got):\n%s", id, diff)
			}
			return got
		}
		for _, id := range oddIDs {
			say = func(c *mcptest.Conn, req rawCall) { c.JSON(result(stateless, req.id)) }
			if diff := cmp.Diff(result(modern, id), call(t, id).body); diff != "" {
				t.Errorf("id %s: the client got (-want +got):\n%s", id, diff)
			}
			fails := func(id string) string {
				return `{"error" : {"data":{"n":1e400,"s":"\u0061", "b":9223372036854775808},"message":"\u0061\/","code":-31999 , ` + oddMember + `}, "id":` + id + `,"jsonrpc":"2.0"}`
			}
			say = func(c *mcptest.Conn, req rawCall) { c.JSON(fails(req.id)) }
			if diff := cmp.Diff(fails(id), call(t, id).body); diff != "" {
				t.Errorf("id %s: the client got the error (-want +got):\n%s", id, diff)
			}
			notices := []string{
				`{"jsonrpc":"2.0", "method":"notifications\/progress","params":{"progressToken":1.0,"progress":1e400,"total":9223372036854775808,"message":"\u0061\/"}}`,
				`{"params":{"x":-0.0, "progressToken" : 1.0,"progress":0.10},"method":"notifications/progress","jsonrpc":"2.0"}`,
			}
			say = func(c *mcptest.Conn, req rawCall) {
				c.Send(streamHead + event(notices[0]) + event(notices[1]) + event(result(stateless, req.id)) + lastChunk)
			}
			if diff := cmp.Diff(append(notices, result(modern, id)), eventsOf(call(t, id).body)); diff != "" {
				t.Errorf("id %s: the client got the events (-want +got):\n%s", id, diff)
			}
		}
		if modern && !stateless {
			return // a notification belongs to no call, and of the sessions there none is known to be its client's
		}
		// What no revision knows goes on as it is, but for what a new target needs in each message's _meta.
		const notice = `{"params":{"_meta":{"k":1.0}, ` + oddMember + `} ,"method":"vendor\/notice","jsonrpc":"2.0"}`
		sent := notice
		if modern {
			sent = strings.Replace(notice, `"k":1.0`, fuzzedMetaMembers+`,"k":1.0`, 1)
		}
		want := map[bool]map[bool]string{true: {true: sent, false: notice}, false: {true: strings.Replace(notice, `"k":1.0`, ofStateless+`,"k":1.0`, 1), false: notice}}[modern][stateless]
		if got := p.post(t, session, sent, headers[:min(4, len(headers))]...); got.status != 202 {
			t.Errorf("a notification: %d %s", got.status, got.body)
		}
		if got := target.posts.with("notice"); len(got) != 1 || got[0] != want {
			t.Errorf("the target got the notification\n%v, want\n%s", got, want)
		}
	})
}

const fuzzedMetaMembers = `"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},"io.modelcontextprotocol/clientInfo":{"name":"raw","version":"1"}`

// With several targets names and URIs are spliced too, and nothing else.
func TestBytesBeforeSeveralTargets(t *testing.T) {
	eachCell(t, func(t *testing.T, client string, stateless bool) {
		const content = `"content":[ {"uri":"%test:\/\/x","type":"resource_link", "name":"\u0061","size":9223372036854775808},{"type":"text","text":"test:\/\/x"} ],` + oddMember
		kind := map[bool]string{true: ofResult}
		target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){"tools/call": func(c *mcptest.Conn, req rawCall) {
			c.JSON(req.result(`{` + kind[stateless] + strings.Replace(content, "%", "", 1) + `}`))
		}})
		p := behind("a="+target.URL, "b="+newRaw(t, stateless, nil).URL).start(t)
		got := p.askAs(t, `"\u0061"`, client, p.begun(t, client), "tools/call", "a_safe", `"name":"a\u005fsafe","arguments":`+oddArguments, "Mcp-Param-Region", "eu")
		sent := target.posts.with("arguments")
		if len(sent) != 1 || !strings.Contains(sent[0], `"params":{"name":"safe","arguments":`+oddArguments) && !strings.Contains(sent[0], `"name":"safe","arguments":`+oddArguments) || !strings.Contains(sent[0], `"id":"\u0061"`) {
			t.Errorf("the target got %v", sent)
		}
		// A URI that is changed is written anew; one without a change to make is not.
		want := strings.Replace(content, `%test:\/\/x`, `a+test://x`, 1)
		if !strings.Contains(got.body, want) || !strings.HasPrefix(got.body, `{"jsonrpc":"2.0","id":"\u0061","result":{`) {
			t.Errorf("the client got\n%s, want in it\n%s", got.body, want)
		}
	})
}

// The elements of a batch reach targets one by one, each as it stands in the batch; and so do the answers the client.
func TestBytesOfBatches(t *testing.T) {
	for _, stateless := range []bool{false, true} {
		kind := map[bool]string{true: ofResult}
		target := newRaw(t, stateless, map[string]func(*mcptest.Conn, rawCall){
			"tools/call": func(c *mcptest.Conn, req rawCall) { c.JSON(req.result(`{` + kind[stateless] + oddContent + `}`)) },
			"initialize": func(c *mcptest.Conn, req rawCall) {
				if stateless {
					c.Answer(404, "application/json", `{"jsonrpc":"2.0","id":`+req.id+`,"error":{"code":-32601,"message":"no"}}`)
					return
				}
				c.Answer(200, "application/json", strings.Replace(wellAnswered("initialize", req.id, false), "2025-11-25", "2025-03-26", 1), "Mcp-Session-Id: s")
			},
		})
		p := behind(target.URL).start(t)
		session := p.initialize(t, "2025-03-26")
		var batch, want []string
		for _, id := range oddIDs {
			batch = append(batch, `{"id":`+id+` , "params":{"name":"safe","arguments":`+oddArguments+`},"method":"tools/call","jsonrpc":"2.0"}`)
			want = append(want, `{"jsonrpc":"2.0","id":`+id+`,"result":{`+oddContent+`}}`)
		}
		got := p.post(t, session, "[ "+strings.Join(batch, " ,\n")+"]")
		less := cmp.Transformer("sorted", func(s []string) string { return sortedLines(strings.Join(s, "\n")) })
		if diff := cmp.Diff(want, eventsOf(got.body), less); diff != "" {
			t.Errorf("stateless target %v: the client got (-want +got):\n%s", stateless, diff)
		}
		sent := target.posts.with("arguments")
		for i := range sent {
			sent[i] = strings.Replace(sent[i], `"_meta":{`+ofStateless+`},`, "", 1)
		}
		if diff := cmp.Diff(batch, sent, less); diff != "" {
			t.Errorf("stateless target %v: the target got (-want +got):\n%s", stateless, diff)
		}
	}
}
