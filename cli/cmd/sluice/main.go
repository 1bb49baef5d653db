// Command sluice is the tool that people install: it starts both planes and pushes configuration to them.
package main

import (
	"context"
	"os"

	"github.com/sluicegate/sluice/cli"
)

func main() { os.Exit(int(cli.Run(context.Background(), cli.OSEnv()))) }
