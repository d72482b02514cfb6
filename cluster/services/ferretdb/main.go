// A server of MongoDB's wire protocol whose documents lie in PostgreSQL: FerretDB as a library, configured for one
// thing. It is there so that MongoDB's driver meets a real server where no MongoDB can be installed; production uses
// MongoDB itself.
//
//	RAZAO_MONGO_LISTEN    address to listen on
//	RAZAO_MONGO_POSTGRES  connection URI of the database; it carries a password, so it is no argument
//
// SIGTERM ends it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/FerretDB/FerretDB/ferretdb"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func serve() error {
	server, err := ferretdb.New(&ferretdb.Config{
		Listener:      ferretdb.ListenerConfig{TCP: os.Getenv("RAZAO_MONGO_LISTEN")},
		Handler:       "postgresql",
		PostgreSQLURL: os.Getenv("RAZAO_MONGO_POSTGRES"),
	})
	if err != nil {
		return fmt.Errorf("not configured: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := server.Run(ctx); err != nil && ctx.Err() == nil {
		return fmt.Errorf("ended: %w", err)
	}
	return nil
}
