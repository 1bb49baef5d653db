// Package mcptest has MCP servers and clients of every revision, for tests, and servers that break the rules.
//
//	srv := mcptest.NewServer(t, mcptest.Options{})                // session era, streamable HTTP: srv.URL
//	srv := mcptest.NewServer(t, mcptest.Options{Stateless: true}) // 2026-07-28, streamable HTTP
//	srv := mcptest.NewServer(t, mcptest.Options{SSE: true})       // HTTP+SSE of 2024-11-05
//	cmd := mcptest.Stdio("serve")                                 // a child over stdin and stdout: cmd.Path, .Args, .Env
//	cli := mcptest.Connect(t, srv.URL, mcptest.ClientOptions{})   // go-sdk client; cli.Call(t, "echo", …)
//	raw := mcptest.NewScript(t, func(c *mcptest.Conn) { … })      // one function per accepted TCP connection
//
// Servers and clients are the go-sdk's, so that nothing here shares code with dataplane/mcp. Every server has the
// same tools, prompts and resources; [AddFeatures] lists them.
//
// A test binary that imports this package is its own stdio server: started with the environment of [Stdio] it
// serves in init and exits, before any test runs.
package mcptest
