package systemtest

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
	// one, and hears of an update), or cancel (calls Tool and leaves the call at its first progress).
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
			if _, err := cli.TryCall(ctx, p.Tool, map[string]any{}); err != nil {
				return "", err
			}
		}
		_, err := cli.Hear(ctx, "notifications/resources/updated", 1)
		return p.URI, err
	case "cancel":
		ctx, leave := context.WithCancel(ctx)
		defer leave()
		over := make(chan error, 1)
		go func() {
			params := &mcp.CallToolParams{Name: p.Tool, Arguments: p.Arguments}
			params.SetProgressToken("held")
			_, err := cli.CallTool(ctx, params)
			over <- err
		}()
		if _, err := cli.Hear(ctx, "notifications/progress", 1); err != nil {
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
