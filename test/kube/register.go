package main

import (
	"context"
	"fmt"
	"net"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// newRegisterCommand makes the command that tells kubelet of a CSI driver through
// a socket in its plugins_registry, as the driver's registrar does beside it in a
// pod. That one is no Go module that could be built from here.
func newRegisterCommand() *cobra.Command {
	r := &registrar{}
	var listen string
	command := &cobra.Command{
		Use:  "register",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return r.serve(cmd.Context(), listen) },
	}
	flags := command.Flags()
	flags.StringVar(&r.name, "name", "", "the driver's name")
	flags.StringVar(&r.endpoint, "endpoint", "", "the driver's socket")
	flags.StringVar(&listen, "listen", "", "socket in kubelet's plugins_registry")
	return command
}

type registrar struct {
	registration.UnimplementedRegistrationServer

	name, endpoint string
}

func (r *registrar) serve(ctx context.Context, path string) error {
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	return server.Serve(listener)
}

// GetInfo is kubelet's question who this is.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return &registration.PluginInfo{
		Type: registration.CSIPlugin, Name: r.name, Endpoint: r.endpoint, SupportedVersions: []string{"1.0.0"},
	}, nil
}

// NotifyRegistrationStatus is kubelet's word on how it went.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("kubelet has registered the driver:", s.PluginRegistered, s.Error)
	return &registration.RegistrationStatusResponse{}, nil
}
