package mcptest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

const stdioEnv = "SLUICE_MCPTEST_STDIO"

// Command starts a stdio server. Env must be set in the child, beside what it inherits.
type Command struct {
	Path string
	Args []string
	Env  map[string]string
}

// Stdio returns how to start a stdio server, in one of these ways:
//
//	serve        a real server with [AddFeatures], of both eras; stderr gets the line "mcptest: serving"
//	legacy       the same, but it answers server/discover with -32601
//	garbage      writes lines that are no JSON, then serves
//	halfline     serves, but writes each line in three pieces with pauses
//	flood        answers initialize, then writes notifications without end
//	longline     answers initialize, and everything else with a line of 20 MiB
//	deaf         never reads stdin
//	mute         reads, but never answers
//	unanswering  answers initialize, and nothing else; of what has the progress token "p" it reports progress once
//	stubborn     serves, ignores SIGTERM and the end of stdin
//	crash        answers initialize and dies, status 3, at the next request
//	dead         dies at once, status 4, with a word on stderr
//	family       serves, and has a child of its own that sleeps; tool "env" {"name": "CHILD_PID"} gives its pid
//	hold         a real server with the tool of [Holds], which is at the URL in SLUICE_MCPTEST_HOLDS
//	params       a real server with the tool region {region}, whose argument stands in the header Mcp-Param-Region
//	stderrflood  serves, and writes 10 MiB to stderr first, some of it without line ends
func Stdio(mode string) Command {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return Command{Path: exe, Env: map[string]string{stdioEnv: mode}}
}

// ConnectStdio starts a command and connects to it directly.
func ConnectStdio(t testing.TB, cmd Command, o ClientOptions) *Client {
	t.Helper()
	c := exec.Command(cmd.Path, cmd.Args...)
	c.Env = os.Environ()
	for k, v := range cmd.Env {
		c.Env = append(c.Env, k+"="+v)
	}
	cli, err := connect(t.Context(), &mcp.CommandTransport{Command: c}, o)
	if err != nil {
		t.Fatalf("connect to %s: %v", cmd.Path, err)
	}
	t.Cleanup(func() { cli.Close() })
	return cli
}

func init() {
	mode := os.Getenv(stdioEnv)
	if mode == "" {
		return
	}
	os.Unsetenv(stdioEnv) // children of the child are themselves
	os.Exit(serveStdio(mode))
}

func serveStdio(mode string) int {
	switch mode {
	case "serve":
		fmt.Fprintln(os.Stderr, "mcptest: serving")
		return serve(os.Stdin, os.Stdout)
	case "legacy":
		return serve(refuseDiscover(os.Stdin, os.Stdout), os.Stdout)
	case "garbage":
		fmt.Print("Welcome to the server!\n\n{\"half\": \n[1,2\n\"text\"\n\xff\xfe\n{\"jsonrpc\":\"2.0\",\"id\":777,\"result\":{}}\n")
		return serve(os.Stdin, os.Stdout)
	case "halfline":
		return serve(os.Stdin, pieces{os.Stdout})
	case "flood":
		answerInitialize(bufio.NewReader(os.Stdin))
		for i := 0; ; i++ {
			if _, err := fmt.Printf(`{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%d %s"}}`+"\n", i, strings.Repeat("x", 1000)); err != nil {
				return 0
			}
		}
	case "longline":
		in := bufio.NewReader(os.Stdin)
		answerInitialize(in)
		for {
			if id := nextRequest(in); id == nil {
				return 0
			} else {
				fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"x":"%s"}}`+"\n", id, strings.Repeat("x", 20<<20))
			}
		}
	case "deaf":
		select {}
	case "mute":
		io.Copy(io.Discard, os.Stdin)
		return 0
	case "unanswering":
		in := bufio.NewReader(os.Stdin)
		answerInitialize(in)
		for {
			line, err := in.ReadBytes('\n')
			if err != nil {
				return 0
			}
			if bytes.Contains(line, []byte(`"progressToken":"p"`)) {
				fmt.Println(`{"jsonrpc":"2.0","method":"notifications/progress","params":{"progressToken":"p","progress":1}}`)
			}
		}
	case "stubborn":
		signal.Ignore(syscall.SIGTERM)
		serve(os.Stdin, os.Stdout)
		select {}
	case "crash":
		in := bufio.NewReader(os.Stdin)
		answerInitialize(in)
		nextRequest(in)
		return 3
	case "dead":
		fmt.Fprintln(os.Stderr, "mcptest: no license found")
		return 4
	case "family":
		child := exec.Command("sleep", "600")
		if err := child.Start(); err != nil {
			return 5
		}
		os.Setenv("CHILD_PID", strconv.Itoa(child.Process.Pid))
		return serve(os.Stdin, os.Stdout)
	case "hold":
		s := newMCP(Options{Name: "mcptest-hold", Bare: true})
		addHold(s, holdAt(os.Getenv(holdsEnv)))
		return serveMCP(s, os.Stdin, os.Stdout)
	case "params":
		s := newMCP(Options{Name: "mcptest-params", Bare: true})
		s.AddTool(&mcp.Tool{Name: "region", InputSchema: json.RawMessage(`{"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"}}}`)},
			func(context.Context, *mcp.CallToolRequest) (*mcp.CallToolResult, error) { return text("ok"), nil })
		return serveMCP(s, os.Stdin, os.Stdout)
	case "stderrflood":
		os.Stderr.Write(bytes.Repeat([]byte("e"), 5<<20))
		os.Stderr.Write(bytes.Repeat([]byte("line\n"), 1<<20))
		return serve(os.Stdin, os.Stdout)
	}
	fmt.Fprintf(os.Stderr, "mcptest: no mode %q\n", mode)
	return 6
}

func serve(in io.Reader, out io.Writer) int {
	return serveMCP(newMCP(Options{Name: "mcptest-stdio"}), in, out)
}

func serveMCP(s *mcp.Server, in io.Reader, out io.Writer) int {
	err := s.Run(context.Background(), &mcp.IOTransport{Reader: io.NopCloser(in), Writer: nopCloser{out}})
	if err != nil && err != io.EOF {
		fmt.Fprintf(os.Stderr, "mcptest: %v\n", err)
	}
	return 0
}

// pieces writes in three parts.
type pieces struct{ w io.Writer }

func (p pieces) Write(b []byte) (int, error) {
	for _, part := range [][]byte{b[:len(b)/3], b[len(b)/3 : 2*len(b)/3], b[2*len(b)/3:]} {
		if _, err := p.w.Write(part); err != nil {
			return 0, err
		}
		time.Sleep(3 * time.Millisecond)
	}
	return len(b), nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// refuseDiscover hands on all lines but server/discover, which it answers itself.
func refuseDiscover(in io.Reader, out io.Writer) io.Reader {
	r, w := io.Pipe()
	go func() {
		br := bufio.NewReader(in)
		for {
			line, err := br.ReadBytes('\n')
			var m struct {
				ID     json.RawMessage
				Method string
			}
			if json.Unmarshal(line, &m) == nil && m.Method == "server/discover" {
				fmt.Fprintf(out, `{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"Method not found"}}`+"\n", m.ID)
			} else {
				w.Write(line)
			}
			if err != nil {
				w.CloseWithError(err)
				return
			}
		}
	}()
	return r
}

// nextRequest reads up to the next message with an id and returns that, nil at the end.
func nextRequest(in *bufio.Reader) json.RawMessage {
	for {
		line, err := in.ReadBytes('\n')
		var m struct{ ID json.RawMessage }
		if json.Unmarshal(line, &m) == nil && m.ID != nil {
			return m.ID
		}
		if err != nil {
			return nil
		}
	}
}

func answerInitialize(in *bufio.Reader) {
	fmt.Printf(`{"jsonrpc":"2.0","id":%s,"result":{"protocolVersion":"2025-11-25","capabilities":{"tools":{}},"serverInfo":{"name":"hand","version":"1"}}}`+"\n", nextRequest(in))
}

func format(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }
