package mcp

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMergeRenamesAndKeepsBytes(t *testing.T) {
	for _, tt := range []struct {
		name    string
		list    List
		results []string
		want    string
	}{
		{"tools", Tools, []string{
			`{"tools":[ {"name":"now", "annotations":{"readOnlyHint":true},"x":1.0, "_meta":{"ui":{"resourceUri":"ui://a"}}} ,{"title":"t","name":"d\u0072op"}],"nextCursor":"ignored"}`,
			`{"ttlMs":5,"tools":[]}`,
			`{"tools":[{"name":"é\n","inputSchema":{"name":"name"},"_meta":{"ui/resourceUri":"ui://b"}},{"name":"both","_meta":{"ui/resourceUri":"ui://b","ui":{"resourceUri":"ui://c"}}}]}`},
			`{"tools":[{"name":"0_now", "annotations":{"readOnlyHint":true},"x":1.0, "_meta":{"ui":{"resourceUri":"0+ui://a"}}},{"name":"2_é\n","inputSchema":{"name":"name"},"_meta":{"ui/resourceUri":"2+ui://b"}},{"name":"2_both","_meta":{"ui/resourceUri":"2+ui://b","ui":{"resourceUri":"2+ui://c"}}}]}`},
		{"prompts", Prompts, []string{`{"prompts":[{"description":"d","name":"p"}]}`}, `{"prompts":[{"description":"d","name":"0_p"}]}`},
		{"resources", Resources, []string{`{"resources":[{"uri":"file:///a?\/","name":"n"}]}`}, `{"resources":[{"uri":"0+file:///a?/","name":"n"}]}`},
		{"templates", Templates, []string{`{"resourceTemplates":[{"name":"n","uriTemplate":"file:///{a}"}]}`}, `{"resourceTemplates":[{"name":"n","uriTemplate":"0+file:///{a}"}]}`},
		{"tasks", Tasks, []string{`{"tasks":[{"status":"working","taskId":"a\u0062","ttl":null}]}`, `{"tasks":[{"taskId":"ab"}]}`}, `{"tasks":[{"status":"working","taskId":"0.ab","ttl":null},{"taskId":"1.ab"}]}`},
		{"no items", Tools, []string{`{}`, ` { "tools" : [ ] } `}, `{"tools":[]}`},
		{"none", Resources, nil, `{"resources":[]}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMerge(tt.list, Limits{})
			for i, result := range tt.results {
				target := string(rune('0' + i))
				if _, err := m.Add([]byte(result), func(it *Item) bool {
					switch {
					case it.Name.String() == "drop":
						return false
					case tt.list == Tasks:
						it.Edits.String(it.TaskID.Span, []byte(target+"."+it.TaskID.String()))
					case tt.list == Tools || tt.list == Prompts:
						it.Rename([]byte(target + "_" + it.Name.String()))
					default:
						it.SetURI([]byte(target + "+" + it.URI.String() + it.URITemplate.String()))
					}
					for _, ui := range []Text{it.UI, it.UIBefore} {
						if ui.IsString() {
							it.Edits.String(ui.Span, []byte(target+"+"+ui.String()))
						}
					}
					return true
				}); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.want, string(m.AppendResult(nil, Tail{Revision: V20251125}))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestItemSpans(t *testing.T) {
	var got []string
	_, err := ReadList(Tools, []byte(`{"x":1,"tools":[{"name":"a"},{"name":"b","annotations":{"k":1},"inputSchema":{"type":"object"},"_meta":{"z":2}},{"name":"c","annotations":[]}]}`), Limits{}, func(it *Item) error {
		got = append(got, strings.Join([]string{it.Name.String(), string(it.Annotations.Of(it.Raw)), string(it.InputSchema.Of(it.Raw)), string(it.Meta.Of(it.Raw))}, "|"))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"a|||", `b|{"k":1}|{"type":"object"}|{"z":2}`, "c|[]||"}, got); diff != "" {
		t.Errorf("items (-want +got):\n%s", diff)
	}
}

func TestMergeHints(t *testing.T) {
	for _, tt := range []struct {
		name    string
		results []string
		tail    Tail
		want    string
	}{
		{"least time, all public", []string{`{"tools":[],"ttlMs":3000,"cacheScope":"public"}`, `{"tools":[],"ttlMs":1500.9,"cacheScope":"public"}`},
			Tail{Revision: V20260728}, `{"tools":[],"resultType":"complete","ttlMs":1500,"cacheScope":"public"}`},
		{"one private", []string{`{"ttlMs":3000,"cacheScope":"public"}`, `{"ttlMs":3000,"cacheScope":"private"}`},
			Tail{Revision: V20260728}, `{"tools":[],"resultType":"complete","ttlMs":3000,"cacheScope":"private"}`},
		{"one without hints", []string{`{"ttlMs":3000,"cacheScope":"public"}`, `{}`},
			Tail{Revision: V20260728}, `{"tools":[],"resultType":"complete","ttlMs":0,"cacheScope":"private"}`},
		{"bad time", []string{`{"ttlMs":-1,"cacheScope":"public"}`}, Tail{Revision: V20260728}, `{"tools":[],"resultType":"complete","ttlMs":0,"cacheScope":"public"}`},
		{"huge time", []string{`{"ttlMs":1e300,"cacheScope":"public"}`}, Tail{Revision: V20260728, MaxTTL: time.Minute}, `{"tools":[],"resultType":"complete","ttlMs":60000,"cacheScope":"public"}`},
		{"no pages", nil, Tail{Revision: V20260728}, `{"tools":[],"resultType":"complete","ttlMs":0,"cacheScope":"private"}`},
		{"private by policy, with all", []string{`{"ttlMs":3000,"cacheScope":"public"}`}, Tail{Revision: V20260728, Private: true, NextCursor: []byte(`"`), Meta: []byte(`{"a":1}`)},
			`{"tools":[],"nextCursor":"\"","resultType":"complete","ttlMs":3000,"cacheScope":"private","_meta":{"a":1}}`},
		{"sessions, empty cursor", []string{`{"ttlMs":3000,"cacheScope":"public"}`}, Tail{Revision: V20250618, NextCursor: []byte{}}, `{"tools":[],"nextCursor":""}`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := NewMerge(Tools, Limits{})
			for _, r := range tt.results {
				if _, err := m.Add([]byte(r), nil); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(tt.want, string(m.AppendResult(nil, tt.tail))); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPage(t *testing.T) {
	page, err := ReadList(Prompts, []byte(`{"_meta":{"a":[1]},"nextCursor":"\u0063","prompts":[{"name":"a"},{"name":"b"}],"ttlMs":1000,"cacheScope":"public"}`), Limits{}, func(*Item) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	if page.Items != 2 || page.NextCursor.String() != "c" || page.TTL != time.Second || !page.HasTTL || page.CacheScope != "public" || string(page.Meta) != `{"a":[1]}` {
		t.Errorf("page is %+v", page)
	}
	page, err = ReadList(Prompts, []byte(`{"prompts":[],"nextCursor":null}`), Limits{}, nil)
	if err != nil || page.NextCursor.IsString() || page.HasTTL || page.Meta != nil {
		t.Errorf("page is %+v (%v)", page, err)
	}
}

func TestBadListsAddNothing(t *testing.T) {
	for _, bad := range []string{
		`[]`, ``, `{"tools":{}}`, `{"tools":[1]}`, `{"tools":[{}]}`, `{"tools":[{"name":1}]}`, `{"tools":[{"name":"a"},]}`, `{"tools":[{"name":"a"}{"name":"b"}]}`,
		`{"tools":[{"name":"a","name":"b"}]}`, `{"tools":[{"name":"a","Name":"b"}]}`, `{"tools":[{"name":"a","annotation\u017f":{}}]}`, `{"tools":[],"tools":[]}`,
		`{"tools":[],"Tools":[]}`, `{"tools":[{"name":"a"}]`, `{"tools":[{"name":"a"}]} x`, `{"tools":[{"name":"\ud800"}]}`,
		`{"tools":[{"name":"good"},{"name":"a","x":` + strings.Repeat("[", 300) + strings.Repeat("]", 300) + `}]}`,
	} {
		m := NewMerge(Tools, Limits{})
		if _, err := m.Add([]byte(`{"tools":[{"name":"before"}]}`), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := m.Add([]byte(bad), nil); err == nil {
			t.Errorf("%.80s was taken", bad)
		}
		if _, err := m.Add([]byte(`{"tools":[{"name":"after"}]}`), nil); err != nil {
			t.Fatal(err)
		}
		if got := string(m.AppendResult(nil, Tail{})); got != `{"tools":[{"name":"before"},{"name":"after"}]}` || m.Len() != 2 {
			t.Errorf("after %.80s: %s", bad, got)
		}
	}
	small := NewMerge(Tools, Limits{Bytes: 30})
	if _, err := small.Add([]byte(`{"tools":[{"name":"before"}]}`), nil); err != nil {
		t.Fatal(err)
	}
	if _, err := small.Add([]byte(`{"tools":[{"name":"before"}]}`), nil); err == nil {
		t.Error("a merge grew beyond its limit")
	}
	stop := errors.New("stop")
	if _, err := ReadList(Tools, []byte(`{"tools":[{"name":"a"}]}`), Limits{}, func(*Item) error { return stop }); err != stop {
		t.Errorf("error %v is not the callback's", err)
	}
}
