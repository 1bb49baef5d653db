package systemtest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/sluicegate/sluice/internal/mcptest"
)

// cell is one connection of one client and what it has to try there. Clients of other languages get it as JSON (interop/matrix).
type cell struct {
	ID  string `json:"id"`
	Pin string `json:"pin"` // a revision, or what the client calls an era
	URL string `json:"url"`
	// Elicit is what elicitations are accepted with. Sampling is answered with Paris, roots with file:///work.
	Elicit map[string]any `json:"elicit"`
	Probes []cellProbe    `json:"probes"`
	// Timeout of each probe that has none of its own, in milliseconds. A probe that lasts longer has failed.
	Timeout int64 `json:"timeoutMs"`
}

// cellProbe is one thing to try.
type cellProbe struct {
	What string `json:"what"` // the column
	// Kind is list (Tool is among the tools), call (Tool's answer holds Want), stream (the same, but the answer is a stream that
	// has begun before it: progress is asked for), update (subscribes to URI, calls Tool if there is
	// one, and hears of an update), unsubscribe (from URI, then as call), or cancel (calls Tool and leaves the call at its first progress).
	//
	// What these see must be Want: pages (how many names of each list have Tool in them, e.g. "3 tools, 1 resources, 0 templates, 2 prompts"),
	// read (URI's text), prompt (the text of the one that Tool names), progress (calls Tool: "3 times"), and level (asks for log messages
	// of level warning and calls Tool: the levels that came). Changes calls Tool and hears that tools, prompts and resources have changed.
	Kind      string         `json:"kind"`
	Tool      string         `json:"tool"`
	Arguments map[string]any `json:"arguments"`
	Want      string         `json:"want,omitempty"`
	URI       string         `json:"uri,omitempty"`
	Timeout   int64          `json:"timeoutMs,omitempty"`
}

// seen is how a probe went. What is `connects` if nothing could be tried.
type seen struct {
	Cell string `json:"cell"`
	What string `json:"what"`
	OK   bool   `json:"ok"`
	Saw  string `json:"saw"`
}

// cellClient runs cells, some at a time, and reports as they go.
type cellClient func(ctx context.Context, cells []cell, parallel int, report func(seen)) error

// goCells is go-sdk's client.
func goCells(ctx context.Context, cells []cell, parallel int, report func(seen)) error {
	turns := make(chan struct{}, parallel)
	var all sync.WaitGroup
	for _, c := range cells {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			goCell(ctx, c, report)
		})
	}
	all.Wait()
	return ctx.Err()
}

func goCell(ctx context.Context, c cell, report func(seen)) {
	within := func(millis int64, f func(context.Context) (string, error)) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, time.Duration(millis)*time.Millisecond)
		defer cancel()
		return f(ctx)
	}
	var cli *mcptest.Client
	_, err := within(c.Timeout, func(probe context.Context) (string, error) {
		live, cancel := context.WithCancel(ctx) // the session's own: that of the probe ends before it
		stop := context.AfterFunc(probe, cancel)
		var err error
		o := mcptest.ClientOptions{Version: c.Pin, Answer: c.Elicit, Reconnect: true}
		if c.Pin == "sse" {
			o.Version, o.SSE = "2025-11-25", true
		}
		cli, err = mcptest.Dial(live, c.URL, o)
		stop()
		return "", err
	})
	if err != nil {
		report(seen{c.ID, "connects", false, err.Error()})
		return
	}
	defer cli.Close()
	for _, p := range c.Probes {
		saw, err := within(cmp.Or(p.Timeout, c.Timeout), func(ctx context.Context) (string, error) { return goProbe(ctx, cli, p) })
		if err != nil {
			saw = err.Error()
		}
		report(seen{c.ID, p.What, err == nil, saw})
	}
}

func goProbe(ctx context.Context, cli *mcptest.Client, p cellProbe) (string, error) {
	switch p.Kind {
	case "list":
		var names []string
		for tool, err := range cli.Tools(ctx, nil) {
			if err != nil {
				return "", err
			}
			names = append(names, tool.Name)
		}
		if !slices.Contains(names, p.Tool) {
			return "", fmt.Errorf("no %s among %v", p.Tool, names)
		}
		return fmt.Sprint(len(names)), nil
	case "call", "stream":
		params := &mcp.CallToolParams{Name: p.Tool, Arguments: p.Arguments}
		if p.Kind == "stream" {
			params.SetProgressToken("streamed")
		}
		got, err := cli.TryCallParams(ctx, params)
		if err == nil && !strings.Contains(got, p.Want) {
			err = fmt.Errorf("result: %s", got)
		}
		return got, err
	case "update":
		if err := cli.Subscribe(ctx, &mcp.SubscribeParams{URI: p.URI}); err != nil {
			return "", err
		}
		if p.Tool != "" {
			arguments := p.Arguments
			if arguments == nil {
				arguments = none // some servers refuse null
			}
			if _, err := cli.TryCall(ctx, p.Tool, arguments); err != nil {
				return "", err
			}
		}
		got, err := cli.Hear(ctx, "notifications/resources/updated", 1)
		if err == nil && got[0].Detail != p.URI {
			err = fmt.Errorf("of %s", got[0].Detail)
		}
		return p.URI, err
	case "unsubscribe":
		if err := cli.Unsubscribe(ctx, &mcp.UnsubscribeParams{URI: p.URI}); err != nil {
			return "", err
		}
		p.Kind = "call"
		return goProbe(ctx, cli, p)
	case "pages", "read", "prompt", "progress", "level":
		saw, err := goSees(ctx, cli, p)
		if err == nil && saw != p.Want {
			err = fmt.Errorf("%s, not %s", saw, p.Want)
		}
		return saw, err
	case "changes": // in the stateless era go-sdk's client listens from the beginning
		if _, err := cli.TryCall(ctx, p.Tool, map[string]any{}); err != nil {
			return "", err
		}
		for _, list := range []string{"tools", "prompts", "resources"} {
			if _, err := cli.Hear(ctx, "notifications/"+list+"/list_changed", 1); err != nil {
				return "", fmt.Errorf("%s: %w", list, err)
			}
		}
		return "all", nil
	case "cancel":
		ctx, leave := context.WithCancel(ctx)
		defer leave()
		over := make(chan error, 1)
		before := heard(cli, "notifications/progress")
		go func() {
			params := &mcp.CallToolParams{Name: p.Tool, Arguments: p.Arguments}
			params.SetProgressToken("held")
			_, err := cli.CallTool(ctx, params)
			over <- err
		}()
		if _, err := cli.Hear(ctx, "notifications/progress", before+1); err != nil {
			return "", err
		}
		leave()
		if err := <-over; !errors.Is(err, context.Canceled) {
			return "", fmt.Errorf("it ended by itself: %w", err)
		}
		return "cancelled", nil
	}
	return "", fmt.Errorf("no probe %s", p.Kind)
}

// goSees is what there is to be compared with a probe's Want.
func goSees(ctx context.Context, cli *mcptest.Client, p cellProbe) (string, error) {
	switch p.Kind {
	case "pages":
		return goPages(ctx, cli, p.Tool)
	case "read":
		r, err := cli.ReadResource(ctx, &mcp.ReadResourceParams{URI: p.URI})
		if err != nil {
			return "", err
		}
		return r.Contents[0].Text, nil
	case "prompt":
		r, err := cli.GetPrompt(ctx, &mcp.GetPromptParams{Name: p.Tool})
		if err != nil {
			return "", err
		}
		return r.Messages[0].Content.(*mcp.TextContent).Text, nil
	}
	params := &mcp.CallToolParams{Name: p.Tool, Arguments: map[string]any{}}
	if p.Kind == "progress" {
		params.SetProgressToken("counted")
		before := heard(cli, "notifications/progress")
		if _, err := cli.TryCallParams(ctx, params); err != nil {
			return "", err
		}
		got, err := cli.Hear(ctx, "notifications/progress", before+3)
		return fmt.Sprint(len(got)-before, " times"), err
	}
	if cli.InitializeResult().ProtocolVersion == "2026-07-28" {
		params.Meta = mcp.Meta{mcp.MetaKeyLogLevel: "warning"}
	} else if err := cli.SetLoggingLevel(ctx, &mcp.SetLoggingLevelParams{Level: "warning"}); err != nil {
		return "", err
	}
	before := heard(cli, "notifications/message") // some servers log before they are told how much
	if _, err := cli.TryCallParams(ctx, params); err != nil {
		return "", err
	}
	var levels []string
	got, err := cli.Hear(ctx, "notifications/message", before+len(strings.Fields(p.Want)))
	for _, message := range got[min(before, len(got)):] {
		levels = append(levels, message.Level)
	}
	return strings.Join(levels, " "), err
}

// heard is how many notifications of a method have come so far.
func heard(cli *mcptest.Client, method string) int {
	n := 0
	for _, x := range cli.Notifications() {
		if x.Method == method {
			n++
		}
	}
	return n
}

// goPages counts the names of each list that have a part in them.
func goPages(ctx context.Context, cli *mcptest.Client, part string) (string, error) {
	var counts []string
	var failed error
	count := func(what string, names []string, err error) {
		failed = cmp.Or(failed, err)
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.Contains(name, part) })
		counts = append(counts, fmt.Sprint(len(names), " ", what))
	}
	tools, err := names(cli.Tools(ctx, nil), func(t *mcp.Tool) string { return t.Name })
	count("tools", tools, err)
	resources, err := names(cli.Resources(ctx, nil), func(r *mcp.Resource) string { return r.URI })
	count("resources", resources, err)
	templates, err := names(cli.ResourceTemplates(ctx, nil), func(t *mcp.ResourceTemplate) string { return t.URITemplate })
	count("templates", templates, err)
	prompts, err := names(cli.Prompts(ctx, nil), func(p *mcp.Prompt) string { return p.Name })
	count("prompts", prompts, err)
	return strings.Join(counts, ", "), failed
}

// names are those of a list, over all its pages.
func names[T any](list iter.Seq2[*T, error], name func(*T) string) ([]string, error) {
	var all []string
	for item, err := range list {
		if err != nil {
			return all, err
		}
		all = append(all, name(item))
	}
	return all, nil
}

// commandCells is a client that is a command; see interop/matrix/cells.mjs.
func commandCells(t *testing.T, name string, command []string) cellClient {
	return func(ctx context.Context, cells []cell, parallel int, report func(seen)) error {
		work, err := json.Marshal(map[string]any{"cells": cells, "parallel": parallel})
		if err != nil {
			return err
		}
		file := filepath.Join(t.TempDir(), "cells.json")
		if err := os.WriteFile(file, work, 0o600); err != nil {
			return err
		}
		cmd := exec.CommandContext(ctx, command[0], append(command[1:], file)...)
		stderr := &tail{}
		cmd.Stderr = stderr
		stdout, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			var s seen
			if err := json.Unmarshal(lines.Bytes(), &s); err == nil { // clients print other things too
				report(s)
			}
		}
		if err := cmd.Wait(); err != nil {
			return fmt.Errorf("%s: %w\n%s", name, err, stderr)
		}
		return lines.Err()
	}
}
