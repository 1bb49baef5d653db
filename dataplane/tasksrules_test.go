package dataplane

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/prototext"

	"github.com/sluicegate/sluice/dataplane/mcp"
	"github.com/sluicegate/sluice/dataplane/session"
	"github.com/sluicegate/sluice/dataplane/snapshot"
	policyv1 "github.com/sluicegate/sluice/proto/gen/sluice/policy/v1"
	xdsv1 "github.com/sluicegate/sluice/proto/gen/sluice/xds/v1"
)

func TestTasksOfOthers(t *testing.T) {
	for _, version := range taskVersions {
		t.Run(version, func(t *testing.T) {
			w, servers, _ := taskFleet(t, version, 0)
			bearer := w.withTokens(t)
			w.keys = []*xdsv1.SessionKey{sessionKey(1)}
			p := w.start(t)
			ada := (&taskClient{version: version, headers: bearer(`"sub":"ada"`)}).begin(t, p)
			id := ada.call(t, p, "a_work")
			bob := (&taskClient{version: version, headers: bearer(`"sub":"bob"`)}).begin(t, p)
			unknown := func(who string, c *taskClient, id string) {
				t.Helper()
				for _, s := range servers {
					s.Reached()
				}
				for _, method := range []string{"tasks/get", "tasks/cancel", map[bool]string{true: "tasks/update", false: "tasks/result"}[version == "2026-07-28"]} {
					got := c.of(t, p, method, id, "")
					if got.Error == nil || got.Error.Code != -32602 || got.Error.Message != "Unknown task: "+id {
						t.Errorf("%s, %s: %s", who, method, got.raw)
					}
				}
				for _, s := range servers {
					if seen := s.Reached(); len(seen) > 0 {
						t.Errorf("%s: a target saw %v", who, seen)
					}
				}
			}
			unknown("another caller", bob, id)
			unknown("a target's own id", ada, "task-1")
			unknown("a forged id", ada, id[:len(id)-1]+"x")
			unknown("no id at all", ada, "")
			// Both keys open; the new one seals. The client's id stays what it was.
			w.keys = []*xdsv1.SessionKey{sessionKey(2), sessionKey(1)}
			p.apply(t, w)
			if got := ada.of(t, p, "tasks/get", id, ""); got.Result.TaskID != id {
				t.Errorf("after a rotation: %s", got.raw)
			}
			w.keys = []*xdsv1.SessionKey{sessionKey(2)}
			p.apply(t, w)
			unknown("a key that is no more", ada.begin(t, p), id)
		})
	}
}

func TestTasksUnderRules(t *testing.T) {
	for _, version := range taskVersions {
		for n := 1; n <= 2; n++ {
			t.Run(fmt.Sprint(version, " targets ", n), func(t *testing.T) {
				w, servers, _ := taskFleet(t, version, 0)
				w.targets = w.targets[:n]
				prefix := ""
				if n == 2 {
					prefix = "a_"
				}
				rules := func(p *testProxy, r ...*policyv1.AuthorizationRule) {
					w.policies["a"] = authorization(r...)
					if p != nil {
						p.apply(t, w)
					}
				}
				rules(nil, allow(`mcp.tool.name in ["work", "ask"]`))
				p := w.start(t)
				c := (&taskClient{version: version}).begin(t, p)
				work, ask := c.call(t, p, prefix+"work"), c.call(t, p, prefix+"ask")
				check := func(what string, id string, reachable bool) {
					t.Helper()
					servers[0].Reached()
					got := c.of(t, p, "tasks/get", id, "")
					if reached := len(servers[0].Reached()) > 0; reached != reachable || reachable != (got.Error == nil) {
						t.Errorf("%s: reached %v: %s", what, reached, got.raw)
					}
					if !reachable && got.Error.Message != "Unknown task: "+id {
						t.Errorf("%s: %s", what, got.raw)
					}
				}
				check("allowed", work, true)
				rules(p, allow(`mcp.tool.name == "ask"`))
				check("of a tool that is not allowed any more", work, false)
				check("of the other tool", ask, true)
				rules(p, allow(`mcp.tool.name == "ask"`), allow(`has(mcp.task)`))
				check("though tasks are allowed", work, false)
				rules(p, deny(`has(mcp.tool) && mcp.tool.name == "work"`), allow(`true`))
				check("of a tool that is denied", work, false)
				rules(p, deny(`has(mcp.task) && mcp.task.name == "task-1"`), allow(`true`))
				check("denied itself", work, false)
				check("not denied", ask, true)
				rules(p, allow(`mcp.tool.name == "work" && mcp.tool.arguments.x == 1`))
				check("of arguments that are not known any more", work, true)
				servers[0].Finish("task-1")
				if got := c.of(t, p, "tasks/cancel", work, ""); got.Error == nil || got.Error.Message != "Cannot cancel task" || !strings.Contains(string(got.Error.Data), work) {
					t.Errorf("of a task that is over: %s", got.raw)
				}
				rules(p, scoped(require(`"run" in scopes`), "run"))
				if got := c.of(t, p, "tasks/get", work, ""); got.Error == nil || !strings.Contains(got.Error.Message, "insufficient scope") {
					t.Errorf("lacking scope: %s", got.raw)
				}
				if version == "2026-07-28" {
					return
				}
				ids := func() []string { return c.list(t, p) }
				c.direct(t, servers[0]) // task-3, which this proxy knows nothing of
				rules(p, allow(`mcp.tool.name in ["work", "ask"]`))
				if diff := cmp.Diff([]string{work, ask}, ids()); diff != "" {
					t.Errorf("listed (-want +got):\n%s", diff)
				}
				rules(p, allow(`mcp.tool.name == "ask"`))
				if diff := cmp.Diff([]string{ask}, ids()); diff != "" {
					t.Errorf("listed to who may only ask (-want +got):\n%s", diff)
				}
				rules(p, allow(`mcp.tool.name == "ask" || has(mcp.task)`))
				if got := ids(); len(got) != 2 || got[0] != ask {
					t.Errorf("listed with all tasks allowed: %v", got)
				} else {
					check("of a tool that nobody knows", got[1], true)
				}
			})
		}
	}
}

func TestTasksPassThrough(t *testing.T) {
	for _, version := range taskVersions {
		w, servers, _ := taskFleet(t, version, 0)
		w.targets = w.targets[:1]
		p := w.start(t)
		c := (&taskClient{version: version}).begin(t, p)
		if id := c.call(t, p, "work"); id != "task-1" {
			t.Errorf("%s: id %q", version, id)
		}
		servers[0].Finish("task-1")
		if text, uri := c.outcome(t, p, "task-1"); text != "work of a: " || uri != "test://work" {
			t.Errorf("%s: outcome %q %q", version, text, uri)
		}
	}
}

func TestTasksStay(t *testing.T) {
	for _, version := range taskVersions {
		w, servers, _ := taskFleet(t, version, 0)
		p := w.start(t)
		c := (&taskClient{version: version}).begin(t, p)
		id := c.call(t, p, "a_work")
		both := w.targets
		w.targets = both[:1]
		p.apply(t, w)
		if got := c.of(t, p, "tasks/get", id, ""); got.Result.TaskID != id {
			t.Errorf("%s, the target alone: %s", version, got.raw)
		}
		if version == "2026-07-28" {
			body, headers := c.body("subscriptions/listen", "", fmt.Sprintf(`"notifications":{"taskIds":[%q]}`, id))
			c.events(t, p, http.MethodPost, body, headers, nil, func(message string) bool {
				if !strings.Contains(message, `"taskIds":["`+id+`"]`) {
					t.Errorf("acknowledged: %s", message)
				}
				return true
			})
		}
		bare := (&taskClient{version: version}).begin(t, p)
		if own := bare.call(t, p, "work"); own != "task-2" {
			t.Errorf("%s, of the target alone: %s", version, own)
		}
		w.policies["a"] = authorization(allow(`has(mcp.task)`))
		p.apply(t, w)
		if got := bare.of(t, p, "tasks/get", "task-2", ""); got.Result.Status != "working" {
			t.Errorf("%s, its own id under a rule about tasks: %s", version, got.raw)
		}
		w.targets, w.policies = both, nil
		p.apply(t, w)
		servers[0].Finish("task-1")
		if text, _ := c.outcome(t, p, id); text != "work of a: " {
			t.Errorf("%s, both again: %q", version, text)
		}
		if version == "2025-11-25" { // a session that began with one target keeps its names
			if got := bare.of(t, p, "tasks/get", "task-2", ""); got.Result.TaskID != "task-2" {
				t.Errorf("its own id when another target has come: %s", got.raw)
			}
		}
	}
}

func TestBackendOfTask(t *testing.T) {
	codec, err := session.New([]session.Key{{}})
	if err != nil {
		t.Fatal(err)
	}
	one, two := &snapshot.Backend{Resource: "t/backend/one"}, &snapshot.Backend{Resource: "t/backend/two"}
	scope := session.Scope{Tenant: "t", Principal: "p"}
	of := scope
	of.Backend = two.Resource
	id := codec.SealTask(of, session.Task{Target: "a", ID: "1"})
	for _, tt := range []struct {
		id       string
		backends []*snapshot.Backend
		want     *snapshot.Backend
	}{
		{id, []*snapshot.Backend{one, two}, two}, {id, []*snapshot.Backend{two, one}, two}, {id, []*snapshot.Backend{one}, nil},
		{"1", []*snapshot.Backend{one, two}, nil}, {id + "x", []*snapshot.Backend{one, two}, nil},
	} {
		msg, err := mcp.Scan([]byte(`{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"`+tt.id+`"}}`), mcp.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		x := &exchange{route: &snapshot.Route{Backends: tt.backends}, message: &msg}
		if got := x.ofTask(codec, scope); got != tt.want {
			t.Errorf("of %s among %d: %v", tt.id, len(tt.backends), got)
		}
	}
}

func TestTasksGuarded(t *testing.T) {
	for _, version := range taskVersions {
		w, servers, _ := taskFleet(t, version, 0)
		w.policies["a"] = aiPolicy(t, guards("", masks("work of", "task-[0-9]")))
		p := w.start(t)
		c := (&taskClient{version: version}).begin(t, p)
		id := c.call(t, p, "a_work")
		servers[0].Finish("task-1")
		if text, _ := c.outcome(t, p, id); strings.Contains(text, "work of") || text == "" {
			t.Errorf("%s: outcome %q", version, text)
		}
	}
}

func TestListedAndItsTasks(t *testing.T) {
	t.Parallel()
	var hidden, shown, exact int
	for seed := range uint64(150) {
		c := chance{rand.New(rand.NewPCG(seed, 7))}
		version := c.pick(taskVersions...)
		w, servers, _ := taskFleet(t, version, 0)
		n := 1 + c.IntN(2)
		w.targets = w.targets[:n]
		prefix := map[int]string{1: "", 2: "a_"}[n]
		bearer := w.withTokens(t)
		w.policies["a"] = authorization(allow(`true`))
		p := w.start(t)
		client := (&taskClient{version: version}).begin(t, p)
		if c.IntN(2) == 0 {
			client = (&taskClient{version: version, headers: bearer(`"sub":"ada","roles":["admin"],"scope":"read"`)}).begin(t, p)
		}
		made := map[string]string{}
		for _, tool := range []string{"work", "ask"} {
			made[tool] = client.call(t, p, prefix+tool)
		}
		w.policies["a"] = c.policies()
		if c.IntN(2) == 0 { // of these two tools, too
			w.policies["a"].McpAuthorization.Rules = append(w.policies["a"].McpAuthorization.Rules, allow(`mcp.tool.name == "work"`))
		}
		rules := prototext.Format(w.policies["a"])
		p.apply(t, w)
		list := client.ask(t, p, "tools/list", "", "").raw
		for tool, id := range made {
			servers[0].Reached()
			got := client.of(t, p, "tasks/get", id, "")
			reached := len(servers[0].Reached()) > 0
			listed := strings.Contains(list, `"`+prefix+tool+`"`)
			if listed {
				shown++
			} else {
				hidden++
			}
			plain := !strings.Contains(rules, "mcp.task") && !strings.Contains(rules, "mcp.method") && !strings.Contains(rules, "arguments") && !strings.Contains(rules, "scope:")
			if plain {
				exact++
			}
			if reached && !listed || plain && reached != listed {
				t.Errorf("seed %d, %s, %d targets: %s is listed: %v, its task reached: %v, %s\n%s", seed, version, n, tool, listed, reached, got.raw, rules)
			}
		}
	}
	if hidden < 60 || shown < 60 || exact < 60 {
		t.Errorf("%d hidden, %d shown, %d exact: too few to mean anything", hidden, shown, exact)
	}
	t.Logf("%d hidden, %d shown, %d exact", hidden, shown, exact)
}
