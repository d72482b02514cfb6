// A server of MongoDB's wire protocol whose documents lie in PostgreSQL: FerretDB as a library, configured for one
// thing. It is there so that MongoDB's driver meets a real server where no MongoDB can be installed; production uses
// MongoDB itself.
//
//	RAZAO_MONGO_LISTEN    address to listen on
//	RAZAO_MONGO_POSTGRES  connection URI of the database; it carries a password, so it is no argument
//
// FerretDB listens on a Unix socket in the working directory, and we stand before it (onechange.go), because it does
// not make a change to a document in one step as MongoDB does. SIGTERM ends it.
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

const socket = "ferretdb.sock"

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() error {
	if err := os.Remove(socket); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("not configured: %w", err)
	}
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:      ferretdb.ListenerConfig{Unix: socket},
		Handler:       "postgresql",
		PostgreSQLURL: os.Getenv("RAZAO_MONGO_POSTGRES"),
	})
	if err != nil {
		return fmt.Errorf("not configured: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	listener, err := net.Listen("tcp", os.Getenv("RAZAO_MONGO_LISTEN"))
	if err != nil {
		return fmt.Errorf("not configured: %w", err)
	}
	defer listener.Close()
	go accept(listener)
	if err := server.Run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("ended: %w", err)
	}
	return nil
}
