# What `cmake --install` puts where: the four binaries, units, the manual, and what watches them. Units name the prefix
# they are installed under.
include(GNUInstallDirs)

foreach(binary nibble nibble-server nibble-worker nibble-engine)
  if(TARGET ${binary})
    install(TARGETS ${binary} RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  endif()
endforeach()

install(FILES README.md CHANGELOG.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(DIRECTORY docs/ DESTINATION ${CMAKE_INSTALL_DOCDIR} FILES_MATCHING PATTERN "*.md" PATTERN results EXCLUDE)
install(DIRECTORY deploy/monitoring/ DESTINATION ${CMAKE_INSTALL_DATADIR}/nibble/monitoring
        PATTERN "*.py" EXCLUDE PATTERN "__pycache__" EXCLUDE PATTERN expect_empty.yaml EXCLUDE
        PATTERN "*.test.yml" EXCLUDE)
install(FILES deploy/systemd/nibble.sysusers DESTINATION lib/sysusers.d RENAME nibble.conf)
install(CODE "
  foreach(unit nibble-server.service nibble-worker.service nibble-worker-gpu.conf)
    file(READ \"${PROJECT_SOURCE_DIR}/deploy/systemd/\${unit}\" text)
    string(REPLACE \"/usr/\" \"\${CMAKE_INSTALL_PREFIX}/\" text \"\${text}\")
    set(folder lib/systemd/system)
    if(unit MATCHES conf)
      set(folder ${CMAKE_INSTALL_DATADIR}/nibble)
    endif()
    message(STATUS \"Installing: \$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/\${folder}/\${unit}\")
    file(WRITE \"\$ENV{DESTDIR}\${CMAKE_INSTALL_PREFIX}/\${folder}/\${unit}\" \"\${text}\")
  endforeach()")
