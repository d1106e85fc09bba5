package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"google.golang.org/grpc"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// registrar answers kubelet, which finds its socket in its plugins_registry.
type registrar struct {
	registration.UnimplementedRegistrationServer

	info   *registration.PluginInfo
	failed chan error
}

// register tells kubelet of the driver until ctx ends or kubelet refuses it.
func (o options) register(ctx context.Context, name string) error {
	path := "/registration/" + name + "-reg.sock" // where the driver's chart mounts plugins_registry
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the last run's socket: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "unix", path)
	if err != nil {
		return fmt.Errorf("listening for kubelet: %w", err)
	}
	r := &registrar{
		info: &registration.PluginInfo{
			Type: registration.CSIPlugin, Name: name, Endpoint: o.kubeletPath, SupportedVersions: []string{"1.0.0"},
		},
		failed: make(chan error, 2),
	}
	server := grpc.NewServer()
	registration.RegisterRegistrationServer(server, r)
	go func() { r.failed <- server.Serve(listener) }()
	select {
	case err = <-r.failed:
	case <-ctx.Done():
	}
	server.Stop() // removes the socket: kubelet forgets the driver
	return err
}

// GetInfo is kubelet's question who this is.
func (r *registrar) GetInfo(context.Context, *registration.InfoRequest) (*registration.PluginInfo, error) {
	return r.info, nil
}

// NotifyRegistrationStatus is kubelet's word on how it went.
func (r *registrar) NotifyRegistrationStatus(_ context.Context, s *registration.RegistrationStatus) (*registration.RegistrationStatusResponse, error) {
	fmt.Println("kubelet has registered the driver:", s.PluginRegistered, s.Error)
	if !s.PluginRegistered {
		select {
		case r.failed <- fmt.Errorf("registering the driver: %s", s.Error):
		default: // we end already
		}
	}
	return &registration.RegistrationStatusResponse{}, nil
}
